package nbd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/aoe-csi/aoe-csi/pkg/blockdev"
)

// sysfs reads the driver's state below /sys/block.
type sysfs struct{ root string }

func (s sysfs) path(number int, elem ...string) string {
	return filepath.Join(append([]string{s.root, fmt.Sprintf("nbd%d", number)}, elem...)...)
}

// read returns an attribute without the newline.
func (s sysfs) read(number int, elem ...string) (string, error) {
	b, err := os.ReadFile(s.path(number, elem...))
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// write sets an attribute. It can block as long as a request of the device is unanswered.
func (s sysfs) write(number int, value string, elem ...string) error {
	return os.WriteFile(s.path(number, elem...), []byte(value), 0)
}

// connected says whether somebody configured the device.
func (s sysfs) connected(number int) (bool, error) {
	maker, err := s.maker(number)
	return maker != 0, err
}

// maker returns the process that configured the device: the attribute pid exists only while it is configured. 0: it is not.
func (s sysfs) maker(number int) (int, error) {
	text, err := s.read(number, "pid")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// backend returns the identifier of a connected device; empty when there is none.
func (s sysfs) backend(number int) (string, error) {
	id, err := s.read(number, "backend")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return id, err
}

// available says whether the number can be asked for: not there yet, or neither configured nor still held open.
func (s sysfs) available(number int) bool {
	size, err := s.read(number, "size")
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	connected, err2 := s.connected(number)
	return err == nil && err2 == nil && !connected && size == "0"
}

// bytes is the device's size.
func (s sysfs) bytes(number int) (uint64, error) {
	text, err := s.read(number, "size")
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseUint(text, 10, 55)
	return sectors * 512, err
}

// idle says whether no request is out.
func (s sysfs) idle(number int) (bool, error) {
	text, err := s.read(number, "inflight")
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return blockdev.IsIdle(text), nil
}

// find returns the number of the connected device with this identifier, looking at the likely one first; −1 when
// there is none.
func (s sysfs) find(id string, likely int) (int, error) {
	numbers, err := s.numbers()
	if err != nil {
		return -1, err
	}
	for _, number := range append([]int{likely}, numbers...) {
		have, err := s.backend(number)
		if err != nil {
			return -1, err
		}
		if have != id || id == "" {
			continue
		}
		if connected, err := s.connected(number); err != nil || connected {
			return number, err
		}
	}
	return -1, nil
}

func (s sysfs) numbers() ([]int, error) {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, entry := range entries {
		if text, ok := strings.CutPrefix(entry.Name(), "nbd"); ok {
			if number, err := strconv.Atoi(text); err == nil {
				numbers = append(numbers, number)
			}
		}
	}
	return numbers, nil
}
