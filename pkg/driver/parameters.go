package driver

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/aoe-csi/aoe-csi/pkg/aoe"
	"github.com/aoe-csi/aoe-csi/pkg/volume"
)

// filesystems that a node can make, and the smallest volume in bytes that each fits in.
var filesystems = map[string]int64{"ext4": 1 << 20, "xfs": 300 << 20}

const defaultFilesystem = "ext4"

// parseParameters reads those of a StorageClass. claim is who asked, "namespace/name", if csi-provisioner says so. A
// parameter that is not known is an error: a misspelt one would be a wish that is never granted.
func parseParameters(parameters map[string]string) (p volume.Parameters, claim string, err error) {
	p.Frontend = "auto"
	// In order, so that of several errors the same one is reported each time.
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		value := parameters[key]
		switch key {
		case ParameterShelf:
			p.Shelf, err = parseShelf(value)
		case ParameterShelves:
			p.ShelfSelector, err = parseShelfSelector(value)
		case ParameterFSType:
			p.FSType, err = parseFSType(value)
		case ParameterMkfsOptions:
			p.MkfsOptions, err = parseMkfsOptions(value)
		case ParameterFrontend:
			p.Frontend, err = parseFrontend(value)
		case ParameterDeadTime:
			p.DeadTime, err = parseDeadTime(value)
		case ParameterExpansion:
			p.OnlineExpansion, err = parseExpansion(value)
		case parameterClaimName, parameterClaimNamespace, parameterVolumeName:
		default:
			err = invalid("parameter %q is not known; known are %s", key, strings.Join([]string{
				ParameterShelf, ParameterShelves, ParameterFSType, ParameterMkfsOptions, ParameterFrontend, ParameterDeadTime, ParameterExpansion}, ", "))
		}
		if err != nil {
			return volume.Parameters{}, "", err
		}
	}
	if name := parameters[parameterClaimName]; name != "" {
		claim = parameters[parameterClaimNamespace] + "/" + name
	}
	return p, claim, nil
}

func parseShelf(value string) (*uint16, error) {
	number, err := strconv.ParseUint(value, 10, 16)
	if err != nil || number > uint64(aoe.MaxShelf) {
		return nil, invalid("parameter %s is %q, not a number from 0 to %d", ParameterShelf, value, aoe.MaxShelf)
	}
	shelf := uint16(number)
	return &shelf, nil
}

func parseShelfSelector(value string) (string, error) {
	selector, err := volume.ParseShelfSelector(value)
	if err != nil {
		return "", invalid("parameter %s: %v", ParameterShelves, err)
	}
	return selector, nil
}

func parseFSType(value string) (string, error) {
	if value == "" {
		return "", nil
	}
	if _, ok := filesystems[value]; !ok {
		return "", invalid("file system %q is not supported; ext4 and xfs are", value)
	}
	return value, nil
}

func parseMkfsOptions(value string) (string, error) {
	if strings.ContainsFunc(value, unicode.IsControl) {
		return "", invalid("parameter %s contains control characters", ParameterMkfsOptions)
	}
	options := strings.Fields(value)
	if len(options) > 0 && !strings.HasPrefix(options[0], "-") {
		return "", invalid("parameter %s is %q, which does not begin with an option", ParameterMkfsOptions, value)
	}
	return strings.Join(options, " "), nil
}

func parseFrontend(value string) (string, error) {
	switch value {
	case "":
		return "auto", nil
	case "auto", "ublk", "nbd":
		return value, nil
	}
	return "", invalid("front end %q is not known; auto, ublk and nbd are", value)
}

func parseExpansion(value string) (bool, error) {
	switch value {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	}
	return false, invalid("parameter %s is %q, neither true nor false", ParameterExpansion, value)
}

// parseDeadTime reads "90s", "5m" or "0". Less than a second would take every hiccup for death.
func parseDeadTime(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || (d > 0 && d < time.Second) {
		return 0, invalid("parameter %s is %q, neither 0 nor a time of at least 1s such as 90s or 5m", ParameterDeadTime, value)
	}
	return d, nil
}

// fsTypeOf joins what the parameters and the capabilities say of the file system. csi-provisioner takes the parameter
// away and puts it into the capability.
func fsTypeOf(parameter string, capabilities []*csi.VolumeCapability) (string, error) {
	fsType := parameter
	for _, c := range capabilities {
		wanted, err := parseFSType(c.GetMount().GetFsType())
		switch {
		case err != nil:
			return "", err
		case wanted == "":
		case fsType != "" && fsType != wanted:
			return "", invalid("two file systems asked for, %s and %s", fsType, wanted)
		default:
			fsType = wanted
		}
	}
	if fsType == "" {
		fsType = defaultFilesystem
	}
	return fsType, nil
}

// checkCapabilities says whether a volume can be all of this: a block device or a file system for one node.
func checkCapabilities(capabilities []*csi.VolumeCapability) error {
	if len(capabilities) == 0 {
		return invalid("volume capabilities missing")
	}
	for _, c := range capabilities {
		if err := checkCapability(c); err != nil {
			return err
		}
	}
	return nil
}

func checkCapability(c *csi.VolumeCapability) error {
	if c == nil {
		return invalid("volume capability missing")
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	default:
		return invalid("access mode %s is not supported; ReadWriteOnce and ReadWriteOncePod are", mode)
	}
	switch c.GetAccessType().(type) {
	case *csi.VolumeCapability_Block:
	case *csi.VolumeCapability_Mount:
		if _, err := parseFSType(c.GetMount().GetFsType()); err != nil {
			return err
		}
		if group := c.GetMount().GetVolumeMountGroup(); group != "" {
			return invalid("volume mount group %q is not supported", group)
		}
	default:
		return invalid("access type missing: neither block nor mount")
	}
	return nil
}
