package provision

import (
	"fmt"
	"strconv"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// fileFormat is the version of the files; newer ones are refused.
const fileFormat = 1

// header begins every file.
type header struct {
	Format int `json:"format"`
}

func (h header) check(what string) error {
	if h.Format < 1 || h.Format > fileFormat {
		return fmt.Errorf("%s has format %d, this software knows 1 to %d: it was written by a newer one", what, h.Format, fileFormat)
	}
	return nil
}

type volumeFile struct {
	header
	Name        string          `json:"name"`
	ID          string          `json:"id"`
	SizeBytes   int64           `json:"sizeBytes"`
	ShelfBytes  int64           `json:"shelfBytes,omitempty"`
	Segment     string          `json:"segment,omitempty"`
	ShelfUUID   string          `json:"shelfUUID,omitempty"`
	Claim       string          `json:"claim,omitempty"`
	Shelf       *uint16         `json:"shelf,omitempty"`
	Selector    string          `json:"shelfSelector,omitempty"`
	FSType      string          `json:"fsType,omitempty"`
	MkfsOptions string          `json:"mkfsOptions,omitempty"`
	Frontend    string          `json:"frontend,omitempty"`
	DeadTime    string          `json:"deadTime,omitempty"`
	Online      bool            `json:"onlineExpansion,omitempty"`
	Phase       volume.Phase    `json:"phase"`
	Message     string          `json:"message,omitempty"`
	Admitted    []admissionFile `json:"admitted,omitempty"`
	Created     time.Time       `json:"created"`
	Version     string          `json:"version"`
}

type admissionFile struct {
	Node      string   `json:"node"`
	MACs      []string `json:"macs,omitempty"`
	ReadOnly  bool     `json:"readOnly,omitempty"`
	Confirmed bool     `json:"confirmed,omitempty"`

	Frontend       string `json:"frontend,omitempty"`
	FrontendReason string `json:"frontendReason,omitempty"`
}

func newVolumeFile(r *volume.Record) *volumeFile {
	f := &volumeFile{
		header: header{fileFormat}, Name: r.Name, ID: r.ID.String(), SizeBytes: r.SizeBytes, ShelfBytes: r.ShelfBytes, Segment: r.Segment,
		ShelfUUID: r.ShelfUUID, Claim: r.Claim, Shelf: r.Parameters.Shelf, Selector: r.Parameters.ShelfSelector, FSType: r.Parameters.FSType,
		MkfsOptions: r.Parameters.MkfsOptions, Frontend: r.Parameters.Frontend, Online: r.Parameters.OnlineExpansion, Phase: r.Phase, Message: r.Message,
		Created: r.Created, Version: r.Version,
	}
	if r.Parameters.DeadTime != 0 {
		f.DeadTime = r.Parameters.DeadTime.String()
	}
	for _, a := range r.Admitted {
		f.Admitted = append(f.Admitted, admissionFile(a))
	}
	return f
}

func (f *volumeFile) record() (*volume.Record, error) {
	if err := f.check("volume " + f.Name); err != nil {
		return nil, err
	}
	id, err := volume.ParseID(f.ID)
	if err != nil {
		return nil, fmt.Errorf("stored volume %s: %s", f.Name, err.Error()) // not the caller's ErrInvalid
	}
	r := &volume.Record{
		Name: f.Name, ID: id, SizeBytes: f.SizeBytes, ShelfBytes: f.ShelfBytes, Segment: f.Segment, ShelfUUID: f.ShelfUUID, Claim: f.Claim,
		Parameters: volume.Parameters{Shelf: f.Shelf, FSType: f.FSType, MkfsOptions: f.MkfsOptions, Frontend: f.Frontend,
			OnlineExpansion: f.Online, ShelfSelector: f.Selector},
		Phase: f.Phase, Message: f.Message, Created: f.Created, Version: f.Version,
	}
	if f.DeadTime != "" {
		if r.Parameters.DeadTime, err = time.ParseDuration(f.DeadTime); err != nil {
			return nil, fmt.Errorf("stored volume %s: dead time: %w", f.Name, err)
		}
	}
	for _, a := range f.Admitted {
		r.Admitted = append(r.Admitted, volume.Admission(a))
	}
	return r, nil
}

// nextVersion counts a record's writes.
func nextVersion(version string) (string, error) {
	n, err := strconv.ParseUint(version, 10, 63)
	if err != nil {
		return "", fmt.Errorf("stored version: %w", err)
	}
	return strconv.FormatUint(n+1, 10), nil
}

type slotFile struct {
	header
	Addr       string `json:"addr"`
	VolumeName string `json:"volumeName"`
	Generation string `json:"generation"`
}

func newSlotFile(s volume.Slot) *slotFile {
	return &slotFile{header: header{fileFormat}, Addr: s.Addr.String(), VolumeName: s.VolumeName, Generation: string(s.Generation)}
}

func (f *slotFile) slot() (*volume.Slot, error) {
	if err := f.check("slot " + f.Addr); err != nil {
		return nil, err
	}
	addr, err := aoe.ParseAddr(f.Addr)
	if err != nil {
		return nil, fmt.Errorf("stored slot: %w", err)
	}
	return &volume.Slot{Addr: addr, VolumeName: f.VolumeName, Generation: volume.Generation(f.Generation)}, nil
}

// nodeFile holds a node as package volume has it: it is written anew by its node all the
// time, so its form may follow the type's.
type nodeFile struct {
	header
	Node volume.Node `json:"node"`
}

func newNodeFile(n *volume.Node) *nodeFile { return &nodeFile{header: header{fileFormat}, Node: *n} }

func (f *nodeFile) node() (*volume.Node, error) {
	if err := f.check("node " + f.Node.Name); err != nil {
		return nil, err
	}
	return &f.Node, nil
}
