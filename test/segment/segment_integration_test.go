//go:build integration

package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
)

const (
	mtu        = 9000
	generation = "abcdefghijklmnop"
	lunBytes   = 1 << 20
	// roleEnv says what a process of the test is; "test" is the one that runs the tests.
	roleEnv = "AOE_CSI_TEST_ROLE"
	// patience is for what takes milliseconds on a machine with nothing else to do.
	patience = time.Minute
)

var lunAddr = aoe.Addr{Shelf: 7, Slot: 3}

// TestMain runs the tests in a network namespace of their own, which goes with the process, or plays a host's part.
func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	switch role {
	case "":
	case "test":
		os.Exit(m.Run())
	default:
		if err := play(role); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
			os.Exit(1)
		}
		return
	}
	cmd := inNamespace("test", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintf(os.Stderr, "network namespace (root needed): %v\n", err)
		os.Exit(1)
	}
}

// inNamespace is this program with a role, in a new network namespace.
func inNamespace(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// play serves the calls of the test on standard input and output.
func play(role string) error {
	part, err := parts(role)
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	if err := server.RegisterName("Host", part); err != nil {
		return err
	}
	server.ServeCodec(jsonrpc.NewServerCodec(&pipe{os.Stdin, os.Stdout}))
	return nil
}

// parts are what hosts can be.
func parts(role string) (any, error) {
	switch role {
	case "target":
		return new(Target), nil
	case "slow target":
		return &Target{slow: true}, nil
	case "node":
		return new(Node), nil
	case "attacker":
		return new(Attacker), nil
	}
	return nil, errors.New("no such part")
}

// pipe is how calls travel.
type pipe struct {
	io.ReadCloser
	out io.WriteCloser
}

func (p *pipe) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p *pipe) Close() error                { return errors.Join(p.ReadCloser.Close(), p.out.Close()) }

// StartArgs say where a part plays.
type StartArgs struct {
	Interfaces []string
	Dir        string // scratch
}

// segment is a hub: a bridge that remembers no addresses, so that nobody can take another's frames away by sending with his address.
type segment struct {
	t      *testing.T
	bridge *netlink.Bridge
}

func newSegment(t *testing.T, name string) *segment {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	never := uint32(0)
	s := &segment{t: t, bridge: &netlink.Bridge{LinkAttrs: attrs, AgeingTime: &never}}
	s.must(netlink.LinkAdd(s.bridge))
	t.Cleanup(func() { s.must(netlink.LinkDel(s.bridge)) })
	s.must(netlink.LinkSetUp(s.bridge))
	return s
}

func (s *segment) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// host is a process of its own in a network namespace of its own.
type host struct {
	t     *testing.T
	cmd   *exec.Cmd
	calls *rpc.Client
	log   logged
	ports []netlink.Link // the segments' ends of its cables
	macs  []aoe.MAC
	dir   string
}

// logged counts and keeps what a process logs.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) lines() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text.Bytes(), []byte("\n"))
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.text.Bytes()
	return string(b[max(0, len(b)-4000):])
}

// host starts a process that plays a part, with an interface eth0, eth1, … on each of the segments.
func (s *segment) host(role, name string, more ...*segment) *host {
	s.t.Helper()
	h := &host{t: s.t, cmd: inNamespace(role)}
	in, err := h.cmd.StdinPipe()
	s.must(err)
	out, err := h.cmd.StdoutPipe()
	s.must(err)
	h.cmd.Stderr = &h.log
	s.must(h.cmd.Start())
	ended := make(chan struct{})
	go func() { _ = h.cmd.Wait(); close(ended) }() // how it ends is the last call's error
	h.calls = jsonrpc.NewClient(&pipe{out, in})
	s.t.Cleanup(func() {
		_ = h.cmd.Process.Kill() // fails only when it has ended
		<-ended
		if s.t.Failed() {
			s.t.Logf("%s logged:\n%s", name, h.log.String())
		}
	})
	args := StartArgs{Dir: s.t.TempDir()}
	h.dir = args.Dir
	for i, segment := range append([]*segment{s}, more...) {
		inside := fmt.Sprintf("eth%d", i)
		h.cable(segment, name+strconv.Itoa(i), inside)
		args.Interfaces = append(args.Interfaces, inside)
	}
	h.call("Start", args, &h.macs)
	return h
}

// cable connects the host to a segment.
func (h *host) cable(s *segment, port, inside string) {
	h.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = port, mtu, s.bridge.Index
	s.must(netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: inside, PeerMTU: mtu, PeerNamespace: netlink.NsPid(h.cmd.Process.Pid),
	}))
	link, err := netlink.LinkByName(port)
	s.must(err)
	s.must(netlink.LinkSetUp(link))
	h.ports = append(h.ports, link)
	h.t.Cleanup(func() {
		if link, err := netlink.LinkByName(port); err == nil { // it goes with the process's namespace, some time
			_ = netlink.LinkDel(link)
		}
	})
}

// call asks the process for something; an error ends the test.
func (h *host) call(method string, args, reply any) {
	h.t.Helper()
	if err := h.try(method, args, reply); err != nil {
		h.t.Fatalf("%s: %v\n%s", method, err, h.log.String())
	}
}

func (h *host) try(method string, args, reply any) error {
	call := h.calls.Go("Host."+method, args, reply, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		return call.Error
	case <-time.After(patience):
		return fmt.Errorf("no answer for %v", patience)
	}
}

// memory is what the process has in memory, in KiB.
func (h *host) memory() int {
	h.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// setUp brings the interfaces of this process's namespace up and returns their addresses.
func setUp(names []string) (macs []aoe.MAC, err error) {
	for _, name := range names {
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			link, err := netlink.LinkByName(name)
			if err == nil && link.Attrs().OperState == netlink.OperUp {
				break
			}
			if err == nil {
				err = netlink.LinkSetUp(link)
			}
			if time.Now().After(deadline) {
				return nil, errors.Join(fmt.Errorf("%s has no carrier", name), err)
			}
		}
		i, err := net.InterfaceByName(name)
		if err != nil {
			return nil, err
		}
		macs = append(macs, aoe.MAC(i.HardwareAddr))
	}
	return macs, nil
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// figure prints what was measured, where it is found again.
func figure(t *testing.T, format string, args ...any) {
	fmt.Printf("figure: %s: %s\n", strings.TrimPrefix(t.Name(), "Test"), fmt.Sprintf(format, args...))
}
