package attach

import (
	"bytes"
	"crypto/sha256"
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

// recordFormat is the one format that is written and read. A record of another version may mean anything, so it is refused.
const recordFormat = 2

// recordHeader is the first line of a record's file: format and SHA-256 of everything after the line.
const recordHeader = "aoe-csi attachment, format %d, sha256 %x\n"

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
	MACs           []aoe.MAC     `json:"-"`                    // where the target was seen: a hint, which is not remembered
}

// record is what must be known to go on with an attachment after this process died. Devices do not outlive the kernel, so
// neither do records: they carry the boot ID, and the directory is on a tmpfs.
type record struct {
	BootID      string         `json:"bootID"`
	Initiator   string         `json:"initiator"` // UUID
	Options     Options        `json:"options"`
	Reason      string         `json:"reason"` // why this front end
	Device      blockdev.State `json:"device"`
	Started     bool           `json:"started"`     // Start returned: the device may have been used
	Incarnation uint64         `json:"incarnation"` // the newest OPEN's
	CacheEpoch  uint64         `json:"cacheEpoch"`
	Admission   uint32         `json:"admission,omitempty"`  // the node's, that the target told of
	Lost        bool           `json:"lost,omitempty"`       // latched: acknowledged writes may be gone
	LostReason  string         `json:"lostReason,omitempty"` // what was seen when it was latched, and when
	Attached    time.Time      `json:"attached"`
}

// records is the directory they are in, a file each.
type records struct{ dir string }

func recordsIn(runDir string) records { return records{dir: filepath.Join(runDir, "attachments")} }

const (
	recordSuffix = ".record"
	// temporarySuffix marks a record that is being written; a leftover of a crash means nothing, as the rename did not happen.
	temporarySuffix = ".new"
)

// path escapes the volume's ID, which may be any string, into a file name.
func (r records) path(volumeID string) string {
	name := strings.ReplaceAll(url.QueryEscape(volumeID), ".", "%2E") // no name begins with a dot
	return filepath.Join(r.dir, name+recordSuffix)
}

// volumeOf is the volume that a record of this name belongs to; "" if the name is none of ours.
func (r records) volumeOf(path string) string {
	volumeID, err := url.QueryUnescape(strings.TrimSuffix(filepath.Base(path), recordSuffix))
	if err != nil || r.path(volumeID) != path {
		return ""
	}
	return volumeID
}

// write replaces the record as a whole.
func (r records) write(rec *record) error {
	path := r.path(rec.Options.VolumeID)
	b, err := encodeRecord(rec)
	if err == nil {
		err = os.WriteFile(path+temporarySuffix, b, 0o600)
	}
	if err == nil {
		err = os.Rename(path+temporarySuffix, path)
	}
	if err != nil {
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

// damaged is a record that nobody can act on: it may stand for a device that is in use.
type damaged struct {
	path     string
	volumeID string // by the file's name; may be empty
	err      error  // names the file
}

// load reads all records. What cannot be understood for certain, or contradicts another, is left alone and told of beside the
// others.
func (r records) load() ([]*record, []damaged, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("load records: %w", err)
	}
	var good []*record
	var bad []damaged
	for _, entry := range entries {
		path := filepath.Join(r.dir, entry.Name())
		if strings.HasSuffix(path, temporarySuffix) {
			continue
		}
		rec, err := r.read(path)
		if err != nil {
			bad = append(bad, damaged{path, r.volumeOf(path), err})
			continue
		}
		good = append(good, rec)
	}
	good, twice := r.contradictions(good)
	return good, append(bad, twice...), nil
}

// contradictions takes out records that claim the same device number in the same run of the kernel. The number of a device that
// was not started is only a plan, so it yields to the one that was.
func (r records) contradictions(all []*record) (good []*record, bad []damaged) {
	type device struct {
		boot, frontend string
		number         int
	}
	claims := make(map[device][]*record)
	for _, rec := range all {
		d := device{rec.BootID, rec.Device.Frontend, rec.Device.Number}
		claims[d] = append(claims[d], rec)
	}
	for _, rec := range all {
		d := device{rec.BootID, rec.Device.Frontend, rec.Device.Number}
		started := 0
		for _, claim := range claims[d] {
			if claim.Started {
				started++
			}
		}
		if len(claims[d]) == 1 || rec.Started && started == 1 {
			good = append(good, rec)
			continue
		}
		path := r.path(rec.Options.VolumeID)
		bad = append(bad, damaged{path, rec.Options.VolumeID,
			fmt.Errorf("record %s: another record claims device %s%d, too", path, d.frontend, d.number)})
	}
	return good, bad
}

// read returns a record that is whole, of the known format and in the file of its own volume.
func (r records) read(path string) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", path, err)
	}
	rec, err := decodeRecord(b)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", path, err)
	}
	if r.path(rec.Options.VolumeID) != path {
		return nil, fmt.Errorf("record %s: it is the record of volume %q, whose file has another name", path, rec.Options.VolumeID)
	}
	return rec, nil
}

func encodeRecord(rec *record) ([]byte, error) {
	body, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append(fmt.Appendf(nil, recordHeader, recordFormat, sha256.Sum256(body)), body...), nil
}

func decodeRecord(b []byte) (*record, error) {
	header, body, _ := bytes.Cut(b, []byte("\n"))
	if want := fmt.Appendf(nil, recordHeader, recordFormat, sha256.Sum256(body)); !bytes.Equal(append(header, '\n'), want) {
		var format int
		if _, err := fmt.Sscanf(string(header), recordHeader[:strings.Index(recordHeader, "%d")+2], &format); err == nil && format != recordFormat {
			return nil, fmt.Errorf("it has format %d, this version knows %d only", format, recordFormat)
		}
		return nil, errors.New("it is damaged: its checksum is wrong")
	}
	rec := new(record)
	if err := json.Unmarshal(body, rec); err != nil {
		return nil, err
	}
	if rec.Options.VolumeID == "" {
		return nil, errors.New("no volume in it")
	}
	return rec, nil
}

// bootID tells one run of the kernel from another.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
