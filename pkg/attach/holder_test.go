package attach

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeHost makes what the kernel tells: path below / → content; content "->x" makes a symbolic link to x.
func fakeHost(t *testing.T, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	all := map[string]string{"proc/self/ns/pid": "->" + initialPIDNamespace, "proc/swaps": "Filename Type Size Used Priority\n"}
	for name, content := range files {
		all[name] = content
	}
	for name, content := range all {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(content, "->"); link {
			err = os.Symlink(target, path)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o700)
		} else {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return host{filepath.Join(root, "sys"), filepath.Join(root, "proc")}
}

// disk are the files of /dev/nbd3 with one partition, which nobody uses, beside those of a process that has nothing to do with it.
func disk(more map[string]string) map[string]string {
	files := map[string]string{
		"sys/class/block/nbd3/dev": "43:96\n", "sys/class/block/nbd3/inflight": "       0        0\n", "sys/class/block/nbd3/holders/": "",
		"sys/class/block/nbd3/nbd3p1/dev": "43:97\n", "sys/class/block/nbd3/nbd3p1/inflight": "0 0\n", "sys/class/block/nbd3/nbd3p1/holders/": "",
		"sys/class/block/loop0/loop/backing_file": "/var/lib/image\n", "sys/fs/ext4/sda1/": "",
		"proc/17/maps": "7f00-7f01 r-xp 00000000 08:01 99 /usr/bin/sh\n", "proc/17/ns/mnt": "->mnt:[1]", "proc/17/fd/": "",
		"proc/17/mountinfo": "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n",
	}
	for name, content := range more {
		files[name] = content
	}
	return files
}

func TestHolder(t *testing.T) {
	for _, tt := range []struct {
		name string
		more map[string]string
		want string // empty: nobody
	}{
		{"nobody", nil, ""},
		{"device mapper", map[string]string{"sys/class/block/nbd3/holders/dm-0": ""}, "dm-0"},
		{"RAID of the partition", map[string]string{"sys/class/block/nbd3/nbd3p1/holders/md0": ""}, "md0"},
		{"file system that no process sees", map[string]string{"sys/fs/xfs/nbd3/": ""}, "xfs"},
		{"file system on the partition", map[string]string{"sys/fs/ext4/nbd3p1/": ""}, "ext4"},
		{"requests", map[string]string{"sys/class/block/nbd3/inflight": "0 1\n"}, "requests"},
		{"loop device", map[string]string{"sys/class/block/loop7/loop/backing_file": "/dev/nbd3\n"}, "loop7"},
		{"swap", map[string]string{"proc/swaps": "Filename Type\n/dev/nbd3p1 partition 1 0 -2\n"}, "swap"},
		{"mount", map[string]string{"proc/17/mountinfo": "22 1 43:96 / /data rw - ext4 /dev/nbd3 rw\n"}, "process 17 (sees it at /data)"},
		{"mount in another namespace", map[string]string{"proc/18/maps": "", "proc/18/fd/": "", "proc/18/ns/mnt": "->mnt:[2]",
			"proc/18/mountinfo": "22 1 43:97 / /srv rw - xfs /dev/nbd3p1 rw\n"}, "/srv"},
		{"node bound for a pod", map[string]string{"proc/17/mountinfo": "22 1 0:5 /nbd3 /publish/dev rw - devtmpfs udev rw\n"}, "/publish/dev"},
		{"mapped", map[string]string{"proc/17/maps": "7f00-7f01 rw-s 00000000 00:05 99 /dev/nbd3\n"}, "mapped"},
		{"another disk's mount", map[string]string{"proc/17/mountinfo": "22 1 43:9 / /data rw - ext4 /dev/nbd30 rw\n"}, ""},
		{"a process that ended", map[string]string{"proc/19/x": ""}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			who, err := fakeHost(t, disk(tt.more)).holder("/dev/nbd3")
			if err != nil || (tt.want == "") != (who == "") || !strings.Contains(who, tt.want) {
				t.Errorf("used by %q, %v; want %q", who, err, tt.want)
			}
		})
	}
	if who, err := fakeHost(t, nil).holder("/dev/nbd3"); err != nil || who != "" {
		t.Errorf("a device that never appeared is used by %q, %v", who, err)
	}
	if who, err := fakeHost(t, disk(map[string]string{"proc/self/ns/pid": "->pid:[4026532999]"})).holder("/dev/nbd3"); err == nil {
		t.Errorf("in a PID namespace: %q", who)
	}
	unreadable := disk(nil)
	delete(unreadable, "sys/class/block/nbd3/inflight")
	if who, err := fakeHost(t, unreadable).holder("/dev/nbd3"); err == nil {
		t.Errorf("without the number of requests: %q", who)
	}
}

// TestOpenDescriptor: a device that a process has open is found by its number, whatever it is called.
func TestOpenDescriptor(t *testing.T) {
	node := filepath.Join(t.TempDir(), "node")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(43, 97))); err != nil {
		t.Skipf("making a device node: %v", err)
	}
	for link, want := range map[string]bool{node: true, "/dev/null": false, "socket:[17]": false} {
		h := fakeHost(t, disk(map[string]string{"proc/17/fd/5": "->" + link}))
		if who, err := h.holder("/dev/nbd3"); err != nil || strings.Contains(who, "open") != want {
			t.Errorf("open %s: %q, %v", link, who, err)
		}
	}
}
