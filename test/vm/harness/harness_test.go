//go:build vm

// Package harness proves that the guest of hack/vm.sh is what the tests beside it rely on.
package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestDevices(t *testing.T) {
	for _, path := range []string{"/dev/ublk-control", "/dev/nbd0", "/dev/nbd15", "/dev/net/tun", "/sys/fs/cgroup/cgroup.controllers"} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("guest lacks %s: %v", path, err)
		}
	}
}

func TestModulesLoadOnDemand(t *testing.T) {
	t.Cleanup(func() { _ = exec.Command("modprobe", "--remove", "aoe").Run() }) // whatever runs after it has its own initiator
	for _, module := range []string{"aoe", "nvme_tcp", "dm_flakey"} {
		if out, err := exec.Command("modprobe", module).CombinedOutput(); err != nil {
			t.Errorf("modprobe %s: %v: %s", module, err, out)
		}
	}
	loaded, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(loaded), "\naoe ") && !strings.HasPrefix(string(loaded), "aoe ") {
		t.Error("aoe is not loaded after modprobe")
	}
}

func TestResultsReachTheHost(t *testing.T) {
	path := filepath.Join(os.Getenv("AOE_CSI_RESULTS"), "proof")
	if err := os.WriteFile(path, []byte("seen\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRunsInPackageDirectory(t *testing.T) {
	if _, err := os.Stat("harness_test.go"); err != nil {
		t.Errorf("working directory: %v", err)
	}
}
