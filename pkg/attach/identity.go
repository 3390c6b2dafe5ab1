package attach

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// identityFormat is the format of the identity's file.
const identityFormat = 1

// incarnationReserve is how far ahead of what is used the stored mark is: about an hour of nanoseconds, so that the
// file is written that often at most.
const incarnationReserve = uint64(time.Hour)

// identity is who this initiator is to targets: a UUID for ever, and incarnations that only grow, also over restarts,
// reboots and a clock that is set back.
type identity struct {
	path string
	uuid aoe.UUID

	mu   sync.Mutex // guards last and mark
	last uint64     // handed out or seen
	mark uint64     // stored: nothing above it was handed out
}

// storedIdentity is the file's content.
type storedIdentity struct {
	Format int    `json:"format"`
	UUID   string `json:"uuid"`
	Mark   uint64 `json:"incarnationMark"`
}

// openIdentity reads the identity kept in dir, or makes one.
func openIdentity(dir string) (*identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("initiator's identity: %w", err)
	}
	id := &identity{path: filepath.Join(dir, "initiator.json")}
	b, err := os.ReadFile(id.path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := rand.Read(id.uuid[:]); err != nil {
			return nil, fmt.Errorf("initiator's identity: %w", err)
		}
		id.uuid[6] = id.uuid[6]&0x0f | 0x40 // RFC 9562: version 4,
		id.uuid[8] = id.uuid[8]&0x3f | 0x80 // variant 10
		return id, id.store()
	}
	if err != nil {
		return nil, fmt.Errorf("initiator's identity: %w", err)
	}
	if err := id.parse(b); err != nil {
		return nil, fmt.Errorf("initiator's identity %s: %w", id.path, err)
	}
	return id, nil
}

// readUUID returns the UUID of the identity kept in dir; "" if there is none.
func readUUID(dir string) (string, error) {
	id := &identity{path: filepath.Join(dir, "initiator.json")}
	b, err := os.ReadFile(id.path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil {
		err = id.parse(b)
	}
	if err != nil {
		return "", fmt.Errorf("initiator's identity %s: %w", id.path, err)
	}
	return id.String(), nil
}

func (id *identity) parse(b []byte) error {
	var stored storedIdentity
	if err := json.Unmarshal(b, &stored); err != nil {
		return err
	}
	if stored.Format != identityFormat {
		return fmt.Errorf("format %d, this version knows %d", stored.Format, identityFormat)
	}
	raw, err := hex.DecodeString(stored.UUID)
	if err != nil || len(raw) != len(id.uuid) {
		return fmt.Errorf("UUID %q", stored.UUID)
	}
	id.uuid = aoe.UUID(raw)
	id.last, id.mark = stored.Mark, stored.Mark
	return nil
}

// store writes the file, durably: a mark that is lost in a crash of the host would be no mark.
func (id *identity) store() error {
	b, err := json.Marshal(storedIdentity{Format: identityFormat, UUID: hex.EncodeToString(id.uuid[:]), Mark: id.mark})
	if err != nil {
		return fmt.Errorf("store initiator's identity: %w", err)
	}
	temporary := id.path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("store initiator's identity: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temporary, id.path)
	}
	if err != nil {
		return fmt.Errorf("store initiator's identity: %w", err)
	}
	return nil
}

// next returns an incarnation greater than all before, and than seen.
func (id *identity) next(now time.Time, seen uint64) (uint64, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.last = max(uint64(now.UnixNano()), id.last+1, seen+1)
	if id.last > id.mark {
		before := id.mark
		id.mark = id.last + incarnationReserve
		if err := id.store(); err != nil {
			id.mark = before
			return 0, err
		}
	}
	return id.last, nil
}

// String is the UUID in its usual form.
func (id *identity) String() string {
	u := id.uuid
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:])
}
