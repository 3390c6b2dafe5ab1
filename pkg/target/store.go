package target

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

var (
	shelfBucket = []byte("shelf")
	lunBucket   = []byte("luns")
	shelfKey    = []byte("self")
)

// store is the metadata. A method that returns nil has made its change durable.
type store struct {
	db *bolt.DB
}

// openStore opens or makes the metadata in dir; the caller holds the directory's lock.
func openStore(dir string) (*store, error) {
	path := filepath.Join(dir, "meta.db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{shelfBucket, lunBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", path, err), db.Close())
	}
	return &store{db: db}, nil
}

func (s *store) close() error { return s.db.Close() }

// shelf reads the directory's own record; nil if there is none yet.
func (s *store) shelf() (*shelfRecord, error) {
	var rec *shelfRecord
	err := s.db.View(func(tx *bolt.Tx) error {
		data := tx.Bucket(shelfBucket).Get(shelfKey)
		if data == nil {
			return nil
		}
		rec = new(shelfRecord)
		return decodeRecord(data, rec, shelfFormat, "shelf")
	})
	return rec, err
}

func (s *store) putShelf(rec *shelfRecord) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode shelf record: %w", err)
	}
	err = s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(shelfBucket).Put(shelfKey, data) })
	if err != nil {
		return fmt.Errorf("write shelf record: %w", err)
	}
	return nil
}

// luns reads all LUN records.
func (s *store) luns() ([]*lunRecord, error) {
	var recs []*lunRecord
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(lunBucket).ForEach(func(key, data []byte) error {
			rec := new(lunRecord)
			if err := decodeRecord(data, rec, lunFormat, "LUN "+string(key)); err != nil {
				return err
			}
			recs = append(recs, rec)
			return nil
		})
	})
	return recs, err
}

// putLuns writes records in one transaction: all of them or none.
func (s *store) putLuns(recs ...*lunRecord) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		for _, rec := range recs {
			data, err := json.Marshal(rec)
			if err != nil {
				return err
			}
			if err := tx.Bucket(lunBucket).Put([]byte(rec.UUID), data); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write LUN record: %w", err)
	}
	return nil
}

func (s *store) deleteLun(uuid string) error {
	err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(lunBucket).Delete([]byte(uuid)) })
	if err != nil {
		return fmt.Errorf("delete LUN record %s: %w", uuid, err)
	}
	return nil
}

// decodeRecord checks the format version before it believes anything else.
func decodeRecord(data []byte, into any, newest int, what string) error {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return fmt.Errorf("read %s record: %w", what, err)
	}
	if head.Format > newest || head.Format < 1 {
		return fmt.Errorf("read %s record: format %d, this program knows up to %d: %w", what, head.Format, newest, ErrFormat)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("read %s record: %w", what, err)
	}
	return nil
}
