package driver

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// serveTest serves a configuration on a socket and returns a connection to it; both end with the test.
func serveTest(t *testing.T, c Config) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "csi.sock")
	listener, err := ListenUnix("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(c).Serve(ctx, listener) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return conn
}

func controllerClient(t *testing.T, volumes Volumes) csi.ControllerClient {
	return csi.NewControllerClient(serveTest(t, Config{Controller: NewController(volumes)}))
}

func mountCapability(fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
	}
}

func blockCapability(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

// expect fails the test unless err has the code and all texts in its message.
func expect(t *testing.T, err error, want codes.Code, texts ...string) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Fatalf("code %s (%v), want %s", got, err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

func TestCreateVolumeBadRequests(t *testing.T) {
	const gi = 1 << 30
	block := blockCapability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
	parameter := func(key, value string) func(*csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{key: value} }
	}
	size := func(required, limit int64) func(*csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}
		}
	}
	capability := func(c *csi.VolumeCapability) func(*csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = []*csi.VolumeCapability{c} }
	}
	for _, test := range []struct {
		name   string
		change func(*csi.CreateVolumeRequest)
		want   codes.Code
		text   string
	}{
		{"no name", func(r *csi.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument, "name missing"},
		{"no capabilities", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument, "capabilities missing"},
		{"capability without mode", capability(&csi.VolumeCapability{AccessType: block.AccessType}), codes.InvalidArgument, "UNKNOWN"},
		{"capability without type", capability(&csi.VolumeCapability{AccessMode: block.AccessMode}), codes.InvalidArgument, "neither block nor mount"},
		{"ReadWriteMany", capability(blockCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)), codes.InvalidArgument, "MULTI_NODE_MULTI_WRITER"},
		{"ReadOnlyMany", capability(blockCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)), codes.InvalidArgument, "MULTI_NODE_READER_ONLY"},
		{"one of two wrong", func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = append(r.VolumeCapabilities, blockCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER))
		}, codes.InvalidArgument, "MULTI_NODE_MULTI_WRITER"},
		{"wrong file system", capability(mountCapability("btrfs")), codes.InvalidArgument, `"btrfs"`},
		{"two file systems", func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = []*csi.VolumeCapability{mountCapability("ext4"), mountCapability("xfs")}
		}, codes.InvalidArgument, "two file systems"},
		{"empty size", size(0, 0), codes.InvalidArgument, "size of 0"},
		{"negative size", size(-1, 0), codes.InvalidArgument, "negative"},
		{"negative limit", size(gi, -1), codes.InvalidArgument, "negative"},
		{"limit below size", size(2*gi, gi), codes.InvalidArgument, "above the limit"},
		{"larger than ATA", size(1<<60, 0), codes.OutOfRange, "ATA"},
		{"larger than any shelf", size(testCapacity+1, 0), codes.OutOfRange, ""},
		{"limit below a page", size(0, 100), codes.OutOfRange, "4096"},
		{"too small for xfs", func(r *csi.CreateVolumeRequest) {
			capability(mountCapability("xfs"))(r)
			size(1<<20, 100<<20)(r)
		}, codes.OutOfRange, "xfs needs"},
		{"online expansion neither true nor false", parameter("onlineExpansion", "yes"), codes.InvalidArgument, "onlineExpansion"},
		{"unknown parameter", parameter("shelve", "7"), codes.InvalidArgument, `parameter "shelve" is not known`},
		{"parameter in wrong case", parameter("Shelf", "7"), codes.InvalidArgument, `"Shelf"`},
		{"shelf no number", parameter("shelf", "seven"), codes.InvalidArgument, `shelf is "seven"`},
		{"shelf negative", parameter("shelf", "-1"), codes.InvalidArgument, "-1"},
		{"shelf selector", parameter("shelfSelector", "tier in ssd"), codes.InvalidArgument, "shelfSelector"},
		{"shelf broadcast", parameter("shelf", "65535"), codes.InvalidArgument, "65534"},
		{"wrong fstype parameter", parameter("csi.storage.k8s.io/fstype", "ntfs"), codes.InvalidArgument, `"ntfs"`},
		{"front end", parameter("frontend", "iscsi"), codes.InvalidArgument, `"iscsi"`},
		{"dead time no time", parameter("deadTime", "soon"), codes.InvalidArgument, `"soon"`},
		{"dead time negative", parameter("deadTime", "-5s"), codes.InvalidArgument, `"-5s"`},
		{"dead time too short", parameter("deadTime", "20ms"), codes.InvalidArgument, "1s"},
		{"mkfs options control", parameter("mkfsOptions", "-L a\nb"), codes.InvalidArgument, "control"},
		{"mkfs options no option", parameter("mkfsOptions", "/dev/sda"), codes.InvalidArgument, "/dev/sda"},
		{"snapshot", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{}}
		}, codes.InvalidArgument, "snapshot"},
		{"clone", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{}}
		}, codes.InvalidArgument, "another volume"},
		{"mutable parameters", func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"a": "b"} }, codes.InvalidArgument, "mutable"},
		{"nowhere of ours", func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{"zone": "a"}}}}
		}, codes.ResourceExhausted, TopologyKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			volumes := newMemoryVolumes()
			request := &csi.CreateVolumeRequest{
				Name:               "pvc-1",
				CapacityRange:      &csi.CapacityRange{RequiredBytes: gi},
				VolumeCapabilities: []*csi.VolumeCapability{block},
			}
			test.change(request)
			_, err := controllerClient(t, volumes).CreateVolume(t.Context(), request)
			expect(t, err, test.want, test.text)
			if len(volumes.volumes) > 0 {
				t.Error("a volume was made")
			}
		})
	}
}

func TestCreateVolume(t *testing.T) {
	volumes := newMemoryVolumes()
	client := controllerClient(t, volumes)
	place := func(segment string) *csi.Topology {
		return &csi.Topology{Segments: map[string]string{TopologyKey: segment, "kubernetes.io/os": "linux"}}
	}
	response, err := client.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name:               "pvc-1",
		CapacityRange:      &csi.CapacityRange{RequiredBytes: 400<<20 + 1, LimitBytes: 1 << 30},
		VolumeCapabilities: []*csi.VolumeCapability{mountCapability("xfs")},
		Parameters: map[string]string{
			"shelf": "7", "mkfsOptions": " -L  data ", "frontend": "nbd", "deadTime": "90s", "onlineExpansion": "true",
			"shelfSelector":    "tier = ssd, rack in (2, 1)",
			parameterClaimName: "data", parameterClaimNamespace: "shop", parameterVolumeName: "pv-1",
		},
		AccessibilityRequirements: &csi.TopologyRequirement{
			Requisite: []*csi.Topology{place("a"), place("b")}, Preferred: []*csi.Topology{place("b")},
		},
	})
	expect(t, err, codes.OK)
	shelf := uint16(7)
	want := volume.CreateRequest{
		Name: "pvc-1", RequiredBytes: 400<<20 + 1, LimitBytes: 1 << 30, Segments: []string{"b", "a"}, Claim: "shop/data",
		Parameters: volume.Parameters{Shelf: &shelf, FSType: "xfs", MkfsOptions: "-L data", Frontend: "nbd", DeadTime: 90 * time.Second, OnlineExpansion: true,
			ShelfSelector: "rack in (1,2),tier=ssd"},
	}
	got := volumes.last
	if !got.Parameters.Equal(want.Parameters) || !slices.Equal(got.Segments, want.Segments) || got.Claim != want.Claim ||
		got.RequiredBytes != want.RequiredBytes || got.LimitBytes != want.LimitBytes || got.Name != want.Name {
		t.Errorf("asked for %+v, want %+v", got, want)
	}
	made := response.GetVolume()
	if _, err := volume.ParseID(made.GetVolumeId()); err != nil {
		t.Error(err)
	}
	if made.GetCapacityBytes() != 400<<20+4096 {
		t.Errorf("capacity %d", made.GetCapacityBytes())
	}
	if want := map[string]string{"fsType": "xfs", "mkfsOptions": "-L data"}; !maps.Equal(made.GetVolumeContext(), want) {
		t.Errorf("volume context %v, want %v", made.GetVolumeContext(), want)
	}
	if len(made.GetAccessibleTopology()) != 1 || made.GetAccessibleTopology()[0].GetSegments()[TopologyKey] != testSegment {
		t.Errorf("topology %v", made.GetAccessibleTopology())
	}
}

func TestCreateVolumeRaisesToFilesystem(t *testing.T) {
	volumes := newMemoryVolumes()
	response, err := controllerClient(t, volumes).CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: "small", CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 20},
		VolumeCapabilities: []*csi.VolumeCapability{mountCapability("xfs")},
	})
	expect(t, err, codes.OK)
	if got := response.GetVolume().GetCapacityBytes(); got != filesystems["xfs"] {
		t.Errorf("capacity %d, want %d", got, filesystems["xfs"])
	}
}

// create makes a volume for tests of other calls.
func create(t *testing.T, client csi.ControllerClient, name string) string {
	t.Helper()
	response, err := client.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*csi.VolumeCapability{mountCapability("")},
	})
	expect(t, err, codes.OK)
	return response.GetVolume().GetVolumeId()
}

func TestControllerPublish(t *testing.T) {
	volumes := newMemoryVolumes()
	client := controllerClient(t, volumes)
	id := create(t, client, "pvc-1")
	request := &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: testNode, VolumeCapability: mountCapability("")}
	for _, test := range []struct {
		name   string
		change func(*csi.ControllerPublishVolumeRequest)
		want   codes.Code
		text   string
	}{
		{"no volume", func(r *csi.ControllerPublishVolumeRequest) { r.VolumeId = "" }, codes.InvalidArgument, "volume ID missing"},
		{"no node", func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = "" }, codes.InvalidArgument, "node ID missing"},
		{"no capability", func(r *csi.ControllerPublishVolumeRequest) { r.VolumeCapability = nil }, codes.InvalidArgument, "capability missing"},
		{"wrong capability", func(r *csi.ControllerPublishVolumeRequest) {
			r.VolumeCapability = blockCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
		}, codes.InvalidArgument, "MULTI_NODE_MULTI_WRITER"},
		{"malformed volume", func(r *csi.ControllerPublishVolumeRequest) { r.VolumeId = "../../etc" }, codes.NotFound, "../../etc"},
		{"unknown volume", func(r *csi.ControllerPublishVolumeRequest) { r.VolumeId = "e7.9-abcdefghijklm234" }, codes.NotFound, "e7.9"},
		{"unknown node", func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = "node-z" }, codes.NotFound, "node-z"},
		{"good", func(*csi.ControllerPublishVolumeRequest) {}, codes.OK, ""},
		{"again", func(*csi.ControllerPublishVolumeRequest) {}, codes.OK, ""},
		{"again, read-only", func(r *csi.ControllerPublishVolumeRequest) { r.Readonly = true }, codes.AlreadyExists, id},
		{"a second node", func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = "node-b" }, codes.FailedPrecondition, testNode},
	} {
		changed := proto.Clone(request).(*csi.ControllerPublishVolumeRequest)
		test.change(changed)
		response, err := client.ControllerPublishVolume(t.Context(), changed)
		t.Run(test.name, func(t *testing.T) {
			if test.want != codes.OK {
				expect(t, err, test.want, test.text)
				return
			}
			expect(t, err, codes.OK)
			decoded, err := decodePublication(response.GetPublishContext())
			if err != nil || !reflect.DeepEqual(decoded, volumes.published[id]) {
				t.Errorf("publish context %v is %+v, %v; want %+v", response.GetPublishContext(), decoded, err, volumes.published[id])
			}
		})
	}
	_, err := client.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
	expect(t, err, codes.FailedPrecondition, testNode)
}

func TestControllerUnpublishAndDelete(t *testing.T) {
	volumes := newMemoryVolumes()
	client := controllerClient(t, volumes)
	id := create(t, client, "pvc-1")
	unpublish := func(id, node string) error {
		_, err := client.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: node})
		return err
	}
	remove := func(id string) error {
		_, err := client.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
		return err
	}
	expect(t, unpublish("", testNode), codes.InvalidArgument, "volume ID missing")
	expect(t, remove(""), codes.InvalidArgument, "volume ID missing")
	expect(t, unpublish("nonsense", testNode), codes.OK)
	expect(t, unpublish(id, ""), codes.OK)
	volumes.fail = volume.ErrUnavailable
	expect(t, unpublish(id, testNode), codes.Unavailable)
	expect(t, remove(id), codes.Unavailable)
	volumes.fail = volume.ErrNotFound
	expect(t, unpublish(id, testNode), codes.OK)
	expect(t, remove(id), codes.OK)
	volumes.fail = nil
	for range 2 {
		expect(t, remove(id), codes.OK)
	}
}

func TestValidateVolumeCapabilities(t *testing.T) {
	client := controllerClient(t, newMemoryVolumes())
	id := create(t, client, "pvc-1")
	for _, test := range []struct {
		name      string
		request   *csi.ValidateVolumeCapabilitiesRequest
		want      codes.Code
		confirmed bool
	}{
		{"no volume", &csi.ValidateVolumeCapabilitiesRequest{VolumeCapabilities: []*csi.VolumeCapability{mountCapability("")}}, codes.InvalidArgument, false},
		{"no capabilities", &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id}, codes.InvalidArgument, false},
		{"unknown", &csi.ValidateVolumeCapabilitiesRequest{VolumeId: "x", VolumeCapabilities: []*csi.VolumeCapability{mountCapability("")}}, codes.NotFound, false},
		{"good", &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{mountCapability("ext4")}}, codes.OK, true},
		{"other file system", &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{mountCapability("xfs")}}, codes.OK, false},
		{"shared", &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{
			blockCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}}, codes.OK, false},
		{"wrong parameter", &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, Parameters: map[string]string{"x": "y"},
			VolumeCapabilities: []*csi.VolumeCapability{mountCapability("")}}, codes.OK, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			response, err := client.ValidateVolumeCapabilities(t.Context(), test.request)
			expect(t, err, test.want)
			if got := response.GetConfirmed() != nil; got != test.confirmed {
				t.Errorf("confirmed: %v (%s), want %v", got, response.GetMessage(), test.confirmed)
			}
			if err == nil && !test.confirmed && response.GetMessage() == "" {
				t.Error("not confirmed without a word")
			}
		})
	}
}

func TestListVolumes(t *testing.T) {
	client := controllerClient(t, newMemoryVolumes())
	var ids []string
	for _, name := range []string{"a", "b", "c"} {
		ids = append(ids, create(t, client, name))
	}
	_, err := client.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{
		VolumeId: ids[1], NodeId: testNode, VolumeCapability: mountCapability("")})
	expect(t, err, codes.OK)
	var got []string
	token := ""
	for {
		page, err := client.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 2, StartingToken: token})
		expect(t, err, codes.OK)
		for _, entry := range page.GetEntries() {
			got = append(got, entry.GetVolume().GetVolumeId()+strings.Join(entry.GetStatus().GetPublishedNodeIds(), ""))
		}
		if token = page.GetNextToken(); token == "" {
			break
		}
	}
	if want := []string{ids[0], ids[1] + testNode, ids[2]}; !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	_, err = client.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: -1})
	expect(t, err, codes.InvalidArgument)
	_, err = client.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: "bad"})
	expect(t, err, codes.Aborted)
}

func TestGetCapacity(t *testing.T) {
	volumes := newMemoryVolumes()
	client := controllerClient(t, volumes)
	for _, test := range []struct {
		name    string
		request *csi.GetCapacityRequest
		want    codes.Code
		bytes   int64
	}{
		{"all", &csi.GetCapacityRequest{}, codes.OK, testCapacity},
		{"one segment", &csi.GetCapacityRequest{AccessibleTopology: topologyOf("a")}, codes.OK, testCapacity},
		{"elsewhere", &csi.GetCapacityRequest{AccessibleTopology: &csi.Topology{Segments: map[string]string{"zone": "a"}}}, codes.OK, 0},
		{"shared", &csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{
			blockCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}}, codes.OK, 0},
		{"wrong parameter", &csi.GetCapacityRequest{Parameters: map[string]string{"x": "y"}}, codes.InvalidArgument, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			response, err := client.GetCapacity(t.Context(), test.request)
			expect(t, err, test.want)
			if got := response.GetAvailableCapacity(); got != test.bytes {
				t.Errorf("available %d, want %d", got, test.bytes)
			}
		})
	}
	if !slices.Equal(volumes.lastCap.Segments, nil) && !slices.Equal(volumes.lastCap.Segments, []string{"a"}) {
		t.Errorf("asked for segments %q", volumes.lastCap.Segments)
	}
	volumes.fail = errors.New("broken")
	_, err := client.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	expect(t, err, codes.Internal, "broken")
}
