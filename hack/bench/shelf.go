package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	shelfv1 "github.com/aoe-csi/aoe-csi/pkg/api/shelf/v1"
)

// shelfClient asks a target of ours.
type shelfClient struct {
	conn *grpc.ClientConn
	api  shelfv1.ShelfClient
}

func (r *rig) shelf(number int) (*shelfClient, error) {
	socket := filepath.Join(r.dir, fmt.Sprintf("shelf-%d-api.sock", number))
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &shelfClient{conn: conn, api: shelfv1.NewShelfClient(conn)}, nil
}

func (s *shelfClient) close() { _ = s.conn.Close() } // nothing was written

// allocations is how many objects the target has allocated.
func (s *shelfClient) allocations(ctx context.Context) (uint64, error) {
	info, err := s.api.GetInfo(ctx, &shelfv1.GetInfoRequest{})
	if err != nil {
		return 0, fmt.Errorf("ask the target: %w", err)
	}
	return info.GetHeapAllocations(), nil
}

// makeLUNs makes managed LUNs in all slots from 0 on and admits the client.
func (s *shelfClient) makeLUNs(ctx context.Context, shelf, slots int, size uint64, macs ...string) error {
	for slot := range slots {
		id := &shelfv1.LunId{Slot: uint32(slot), Generation: generationOf(shelf, slot)}
		if _, err := s.api.CreateLun(ctx, &shelfv1.CreateLunRequest{Id: id, SizeBytes: size, Name: fmt.Sprintf("bench-%d-%d", shelf, slot)}); err != nil {
			return fmt.Errorf("make e%d.%d: %w", shelf, slot, err)
		}
		if _, err := s.api.Admit(ctx, &shelfv1.AdmitRequest{Id: id, Admission: &shelfv1.Admission{Node: "bench", Macs: macs}}); err != nil {
			return fmt.Errorf("admit to e%d.%d: %w", shelf, slot, err)
		}
	}
	return nil
}

// generationOf is 16 characters of base32 for a LUN.
func generationOf(shelf, slot int) string {
	digits := []byte(fmt.Sprintf("%016o", shelf<<8|slot))
	return strings.Map(func(c rune) rune { return c - '0' + 'a' }, string(digits))
}
