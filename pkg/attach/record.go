package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// recordFormat is the newest format that is written and read.
const recordFormat = 1

// Options are how a volume was asked to be attached.
type Options struct {
	VolumeID   string   `json:"volumeID"`
	Target     aoe.Addr `json:"target"`
	Generation string   `json:"generation,omitempty"` // empty: the target need not prove its identity
	Frontend   string   `json:"frontend"`             // as asked for: "auto" or a name
	// FrontendReason is why, by whoever chose Frontend; empty: somebody asked for it.
	FrontendReason string        `json:"frontendReason,omitempty"`
	DeadTime       time.Duration `json:"deadTime"` // nanoseconds; 0: wait for ever
	ReadOnly       bool          `json:"readOnly,omitempty"`
	Interfaces     []string      `json:"interfaces,omitempty"` // empty: all of the initiator's
}

// record is what must be known to go on with an attachment after this process died. Devices do not outlive the kernel, so
// neither do records: they carry the boot ID, and the directory is on a tmpfs.
type record struct {
	Format      int            `json:"format"`
	BootID      string         `json:"bootID"`
	Initiator   string         `json:"initiator"` // UUID
	Options     Options        `json:"options"`
	Reason      string         `json:"reason"` // why this front end
	Device      blockdev.State `json:"device"`
	Started     bool           `json:"started"`     // Start returned: the device may have been used
	Incarnation uint64         `json:"incarnation"` // the newest OPEN's
	CacheEpoch  uint64         `json:"cacheEpoch"`
	Lost        bool           `json:"lost,omitempty"` // latched: acknowledged writes may be gone
	Attached    time.Time      `json:"attached"`
}

// records is the directory they are in, a file each.
type records struct{ dir string }

const recordSuffix = ".json"

// path escapes the volume's ID, which may be any string, into a file name.
func (r records) path(volumeID string) string {
	name := strings.ReplaceAll(url.QueryEscape(volumeID), ".", "%2E") // no name begins with a dot
	return filepath.Join(r.dir, name+recordSuffix)
}

// write replaces the record as a whole.
func (r records) write(rec *record) error {
	b, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("write record of %s: %w", rec.Options.VolumeID, err)
	}
	path := r.path(rec.Options.VolumeID)
	temporary := path + ".new"
	if err := os.WriteFile(temporary, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write record of %s: %w", rec.Options.VolumeID, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write record of %s: %w", rec.Options.VolumeID, err)
	}
	return nil
}

// remove deletes the record; missing is success.
func (r records) remove(volumeID string) error {
	if err := os.Remove(r.path(volumeID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record of %s: %w", volumeID, err)
	}
	return nil
}

// load reads all records. A file that cannot be understood is an error beside the others: it may stand for a device that
// is still there, and is left alone.
func (r records) load() ([]*record, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, fmt.Errorf("load records: %w", err)
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("load records: %w", err)
	}
	var all []*record
	var errs []error
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), recordSuffix) {
			continue // a temporary file of a write that was cut off
		}
		rec, err := readRecord(filepath.Join(r.dir, entry.Name()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, rec)
	}
	return all, errors.Join(errs...)
}

func readRecord(path string) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return nil, fmt.Errorf("read record %s: %w", path, err)
	}
	if rec.Format < 1 || rec.Format > recordFormat {
		return nil, fmt.Errorf("read record %s: format %d, this version knows up to %d", path, rec.Format, recordFormat)
	}
	if rec.Options.VolumeID == "" {
		return nil, fmt.Errorf("read record %s: no volume in it", path)
	}
	return &rec, nil
}

// bootID tells one run of the kernel from another.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
