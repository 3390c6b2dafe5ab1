//go:build vm

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aoe-csi/aoe-csi/test/vm/lab"
)

// The addresses of the cable's ends, for what needs IP.
const (
	near4 = "10.99.0.1"
	far4  = "10.99.0.2"
)

const patience = 30 * time.Second

// backing is a file for a foreign server, whole from the start.
func (r *rig) backing(name string) string {
	file := filepath.Join(r.far.Dir, name)
	if _, err := os.Stat(file); err != nil {
		if err := os.WriteFile(file, make([]byte, lunBytes), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	return file
}

// shelf starts our target, with a LUN at the address.
func (r *rig) shelf(addr string, args ...string) *lab.Target {
	return r.lun(r.far.Target(7), addr, args...)
}

// lun makes a LUN unless it is there.
func (r *rig) lun(target *lab.Target, addr string, args ...string) *lab.Target {
	if out := target.MustLun("list"); !strings.Contains(out, addr) {
		target.MustLun(append([]string{"create", addr, "--size", fmt.Sprint(lunBytes)}, args...)...)
	}
	return target
}

// ours is aoe-csi at both ends, with a session as every volume of the driver has it.
func (r *rig) ours(frontend string) (string, func()) {
	addr := map[string]string{"ublk": "e7.1", "nbd": "e7.2"}[frontend]
	target := r.shelf(addr)
	target.MustLun("admit", addr, "--node", "bench", "--mac", r.guest.MAC)
	i := r.guest.Initiator()
	device := i.Attach(addr, "--frontend", frontend)
	return device, func() {
		out, err := i.CLI(patience, "stat", "-o", "wide")
		if err != nil {
			r.t.Errorf("stat: %v", err)
		}
		r.log("%s", strings.TrimSpace(out))
		i.Detach(addr)
		i.Kill()
		target.Kill()
	}
}

// kernelAoE is the kernel's initiator, for whatever serves the address.
func (r *rig) kernelAoE(addr string) (string, func()) {
	r.l.Run("modprobe", "aoe", "aoe_iflist="+r.guest.If)
	device := "/dev/etherd/" + addr
	r.l.Eventually(patience, device, func() error {
		r.l.Run("aoe-discover")
		_, err := os.Stat(device)
		return err
	})
	return device, func() {
		// A module that stays costs the others a look at each frame, no more.
		for range 10 {
			out, err := r.l.TryFor(patience, "rmmod", "aoe")
			if err == nil {
				return
			}
			r.log("rmmod aoe: %v: %s", err, strings.TrimSpace(out))
			time.Sleep(time.Second)
		}
	}
}

func (r *rig) kernelVblade() (string, func()) {
	server := r.far.Start("vblade", "3", "1", r.far.If, r.backing("vblade"))
	device, down := r.kernelAoE("e3.1")
	return device, func() { down(); server.Kill() }
}

func (r *rig) kernelOurs() (string, func()) {
	target := r.shelf("e7.3", "--access", "open")
	device, down := r.kernelAoE("e7.3")
	return device, func() { down(); target.Kill() }
}

// inFar runs a script in the other end's network namespace but with the guest's /sys, where configfs is.
func (r *rig) inFar(script string) {
	r.l.Run("nsenter", "--net=/run/netns/"+r.far.NS, "sh", "-ec", script)
}

// nvme is the kernel's initiator and target over a loop device.
func (r *rig) nvme() (string, func()) {
	r.l.Run("modprobe", "-a", "nvmet_tcp", "nvme_tcp")
	loop := strings.TrimSpace(r.l.Run("losetup", "--find", "--show", r.backing("nvme")))
	r.inFar(`mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
cd /sys/kernel/config/nvmet; mkdir subsystems/bench subsystems/bench/namespaces/1 ports/1
echo 1 >subsystems/bench/attr_allow_any_host
printf ` + loop + ` >subsystems/bench/namespaces/1/device_path
echo 1 >subsystems/bench/namespaces/1/enable
cd ports/1; echo ipv4 >addr_adrfam; echo tcp >addr_trtype; echo ` + far4 + ` >addr_traddr; echo 4420 >addr_trsvcid
ln -s ../../subsystems/bench subsystems/bench`)
	r.l.Run("sh", "-ec", "printf 'transport=tcp,traddr="+far4+",trsvcid=4420,nqn=bench' >/dev/nvme-fabrics")
	device := "/dev/nvme0n1"
	r.l.Eventually(patience, device, func() error { _, err := os.Stat(device); return err })
	return device, func() {
		r.l.Run("sh", "-ec", "echo 1 >/sys/class/nvme/nvme0/delete_controller")
		r.inFar(`cd /sys/kernel/config/nvmet; rm ports/1/subsystems/bench; rmdir ports/1
echo 0 >subsystems/bench/namespaces/1/enable; rmdir subsystems/bench/namespaces/1 subsystems/bench`)
		r.l.Run("losetup", "--detach", loop)
	}
}

func (r *rig) nbdServer() (string, func()) {
	config := filepath.Join(r.far.Dir, "nbd.conf")
	text := "[generic]\n  listenaddr = " + far4 + "\n[bench]\n  exportname = " + r.backing("nbd") + "\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	server := r.far.Start("nbd-server", "-d", "-C", config)
	device := "/dev/nbd15"
	r.l.Eventually(patience, device, func() error {
		if out, err := r.l.TryFor(patience, "nbd-client", far4, device, "-N", "bench", "-b", "4096"); err != nil {
			return fmt.Errorf("nbd-client: %w: %s", err, out)
		}
		return nil
	})
	return device, func() {
		r.l.Run("nbd-client", "-d", device)
		server.Kill()
	}
}

// iscsi is the kernel's initiator with its daemon, and tgt, both configured as Debian delivers them.
func (r *rig) iscsi() (string, func()) {
	const name = "iqn.2026-11.example:bench"
	server := r.far.Start("tgtd", "--foreground")
	r.l.Eventually(patience, "tgtd", func() error {
		_, err := r.l.TryFor(patience, "ip", "netns", "exec", r.far.NS, "tgtadm", "--mode", "target", "--op", "show")
		return err
	})
	r.far.Run("tgtadm", "--lld", "iscsi", "--mode", "target", "--op", "new", "--tid", "1", "--targetname", name)
	r.far.Run("tgtadm", "--lld", "iscsi", "--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "--backing-store", r.backing("iscsi"))
	r.far.Run("tgtadm", "--lld", "iscsi", "--mode", "target", "--op", "bind", "--tid", "1", "--initiator-address", "ALL")

	r.l.Run("modprobe", "-a", "iscsi_tcp", "sd_mod")
	r.l.Run("sh", "-ec", "mkdir -p /run/lock/iscsi; echo InitiatorName="+name+".initiator >/etc/iscsi/initiatorname.iscsi")
	daemon := r.guest.Start("iscsid", "--foreground")
	node := []string{"--mode", "node", "--targetname", name, "--portal", far4}
	r.l.Eventually(patience, "a session", func() error {
		out, err := r.l.TryFor(patience, "iscsiadm", "--mode", "discovery", "--type", "sendtargets", "--portal", far4)
		if err == nil {
			out, err = r.l.TryFor(patience, "iscsiadm", append(node, "--login")...)
		}
		if err != nil {
			return fmt.Errorf("iscsiadm: %w: %s", err, out)
		}
		return nil
	})
	var device string
	r.l.Eventually(patience, "a disk", func() error {
		found, err := filepath.Glob("/sys/class/iscsi_session/session*/device/target*/*/block/*")
		if err != nil || len(found) != 1 {
			return fmt.Errorf("disks of sessions: %q (%v), want one", found, err)
		}
		device = "/dev/" + filepath.Base(found[0])
		_, err = os.Stat(device)
		return err
	})
	return device, func() {
		r.l.Run("iscsiadm", append(node, "--logout")...)
		daemon.Kill()
		server.Kill()
	}
}
