package target

import (
	"encoding/json"
	"fmt"
)

// Buckets of the metadata; the shelf's own record has one key.
const (
	shelfBucket = "shelf"
	lunBucket   = "luns"
	shelfKey    = "self"
)

// store is the metadata: records in JSON. A method that returns nil has made its change durable.
type store struct {
	media Media
}

// shelf reads the directory's own record; nil if there is none yet.
func (s *store) shelf() (*shelfRecord, error) {
	var rec *shelfRecord
	err := s.media.Records(shelfBucket, func(key string, data []byte) error {
		if key != shelfKey {
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
	if err := s.media.Update(Change{Bucket: shelfBucket, Key: shelfKey, Value: data}); err != nil {
		return fmt.Errorf("write shelf record: %w", err)
	}
	return nil
}

// luns reads all LUN records.
func (s *store) luns() ([]*lunRecord, error) {
	var recs []*lunRecord
	err := s.media.Records(lunBucket, func(key string, data []byte) error {
		rec := new(lunRecord)
		if err := decodeRecord(data, rec, lunFormat, "LUN "+key); err != nil {
			return err
		}
		recs = append(recs, rec)
		return nil
	})
	return recs, err
}

// putLuns writes records at once: all of them or none.
func (s *store) putLuns(recs ...*lunRecord) error {
	changes := make([]Change, len(recs))
	for i, rec := range recs {
		data, err := json.Marshal(rec)
		if err != nil {
			return fmt.Errorf("encode LUN record: %w", err)
		}
		changes[i] = Change{Bucket: lunBucket, Key: rec.UUID, Value: data}
	}
	if err := s.media.Update(changes...); err != nil {
		return fmt.Errorf("write LUN record: %w", err)
	}
	return nil
}

func (s *store) deleteLun(uuid string) error {
	if err := s.media.Update(Change{Bucket: lunBucket, Key: uuid}); err != nil {
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
