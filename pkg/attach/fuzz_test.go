package attach

import (
	"crypto/sha256"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

// FuzzRecord: a record is refused, or it is what comes out when it is written again. With sum set, the checksum fits whatever there is.
func FuzzRecord(f *testing.F) {
	good, err := encodeRecord(&record{
		BootID: "boot", Initiator: "uuid", Started: true, Incarnation: 7, CacheEpoch: 1 << 63, Lost: true,
		Options: Options{VolumeID: "e7.3-abcdefghijklmnop", Target: aoe.Addr{Shelf: 7, Slot: 3}, Frontend: "auto", DeadTime: time.Minute, Interfaces: []string{"eth0"}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, false)
	f.Add(good[len(good)/2:], false)
	f.Add([]byte(`{"options":{"volumeID":"v","target":"e7.3"}}`), true)
	f.Add([]byte(`{"options":{"volumeID":"v","deadTime":-1}} {}`), true)
	f.Fuzz(func(t *testing.T, b []byte, sum bool) {
		if sum {
			b = append(fmt.Appendf(nil, recordHeader, recordFormat, sha256.Sum256(b)), b...)
		}
		rec, err := decodeRecord(b)
		if err != nil {
			return
		}
		if rec.Options.VolumeID == "" {
			t.Fatal("a record of no volume was taken")
		}
		again, err := encodeRecord(rec)
		if err != nil {
			t.Fatal(err)
		}
		same, err := decodeRecord(again)
		if err != nil || !reflect.DeepEqual(normal(rec), normal(same)) {
			t.Fatalf("%+v became %+v: %v", rec, same, err)
		}
	})
}

// normal leaves out what has more than one form of the same meaning.
func normal(r *record) record {
	n := *r
	n.Attached = n.Attached.UTC().Round(0)
	if len(n.Options.Interfaces) == 0 {
		n.Options.Interfaces = nil
	}
	return n
}
