package mount

import (
	"fmt"

	mountutils "k8s.io/mount-utils"
)

// Grow makes the file system on device, mounted at path, as large as the device. One that fills it already is success; one that is
// mounted read-only stays as it is. It runs resize2fs or xfs_growfs, which leave the decision whether to do anything to the kernel.
func (m *Mounter) Grow(device, path string) error {
	there, mounted, err := m.at(path)
	switch {
	case err != nil:
		return err
	case !mounted:
		return fmt.Errorf("grow the file system of %s: nothing is mounted at %s", device, path)
	case there.readOnly:
		return nil
	}
	return m.grow(device, path)
}

func (m *Mounter) grow(device, path string) error {
	resizer := mountutils.NewResizeFs(m.exec)
	need, err := resizer.NeedResize(device, path)
	if err == nil && need {
		_, err = resizer.Resize(device, path)
	}
	if err != nil {
		return fmt.Errorf("grow the file system of %s at %s: %w", device, path, err)
	}
	return nil
}
