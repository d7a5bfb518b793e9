package driver

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// class is what the parameters of a StorageClass say.
type class struct {
	pool      string
	params    pool.Params
	cloneMode pool.CloneMode
	template  string // id of a snapshot
}

// Parameter is one key a StorageClass may have.
type Parameter struct {
	Key    string
	Values string // which values are valid, for people
	set    func(c *class, value string) error
}

// sidecarPrefix begins the keys that the sidecars add: names of the claim and
// its volume (--extra-create-metadata), secrets, the filesystem. They are not
// ours to refuse.
const sidecarPrefix = "csi.storage.k8s.io/"

// sidecarFSType is the sidecar's own key for the filesystem. It usually takes
// it out and puts it into the capability.
const sidecarFSType = sidecarPrefix + "fstype"

// The bounds of the numbers. Those of blockSize are the format's.
const (
	minBlock = 1 << 20
	maxBlock = 256 << 20
	minLog   = 1 << 20
	maxLog   = 256 << 20
	maxMkfs  = 1024
)

// Parameters lists every parameter of a StorageClass, sorted by key.
func Parameters() []Parameter {
	return []Parameter{
		{"blockSize", "a power of two from 1Mi to 256Mi; by default chosen by the volume's size", setBlockSize},
		{"cloneMode", "link, reflink or copy; default link", setCloneMode},
		{"fsType", strings.Join(filesystems(), ", ") + "; default " + defaultFS, setFSType},
		{"logSize", "whole Mi from 1Mi to 256Mi; default 1Mi", setLogSize},
		{"logicalSectorSize", "512 or 4096; default 512", setSectorSize},
		{"mkfsOptions", "options for mkfs, separated by blanks", setMkfsOptions},
		{"onFull", onFullValues, setOnFull},
		{"pauseLimit", "a duration from 1s, such as 30m, after which a write that waits for space fails; 0: never; default 0", setPauseLimit},
		{"pool", "the name of a pool of the plugin; by default the first", setPool},
		{"subformat", "dynamic or fixed; default dynamic", setSubformat},
		{"template", "the id of a snapshot of the pool, of which every volume of the class is made", setTemplate},
	}
}

// parseClass reads the parameters. Unknown and bad ones are refused.
func parseClass(given map[string]string) (class, error) {
	known := Parameters()
	var c class
	for _, key := range slices.Sorted(maps.Keys(given)) {
		name := key
		if key == sidecarFSType {
			name = "fsType"
		} else if strings.HasPrefix(key, sidecarPrefix) {
			continue
		}
		i := slices.IndexFunc(known, func(p Parameter) bool { return p.Key == name })
		if i < 0 {
			return class{}, fmt.Errorf("%w: unknown parameter %q; valid are: %s", errInvalid, key, describe(known))
		}
		if err := known[i].set(&c, given[key]); err != nil {
			return class{}, fmt.Errorf("%w: parameter %s=%q: %w; valid: %s", errInvalid, key, given[key], err, known[i].Values)
		}
	}
	return c, nil
}

func describe(known []Parameter) string {
	var b strings.Builder
	for i, p := range known {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s (%s)", p.Key, p.Values)
	}
	return b.String()
}

func setPool(c *class, v string) error {
	if v == "" {
		return fmt.Errorf("the name is empty")
	}
	c.pool = v
	return nil
}

func setCloneMode(c *class, v string) error {
	switch v {
	case "link":
	case string(pool.CloneReflink), string(pool.CloneCopy):
		c.cloneMode = pool.CloneMode(v)
	default:
		return fmt.Errorf("no such mode")
	}
	return nil
}

func setTemplate(c *class, v string) error {
	if v == "" {
		return fmt.Errorf("the id is empty")
	}
	c.template = v
	return nil
}

func setOnFull(c *class, v string) (err error) {
	c.params.OnFull, err = parseOnFull(v)
	return err
}

func setPauseLimit(c *class, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil {
		return fmt.Errorf("no duration")
	}
	if d < 0 || d%time.Second != 0 {
		return fmt.Errorf("not in whole seconds")
	}
	c.params.PauseLimit = int64(d / time.Second)
	return nil
}

func setSubformat(c *class, v string) error {
	switch v {
	case "dynamic":
	case "fixed":
		c.params.Fixed = true
	default:
		return fmt.Errorf("no such subformat")
	}
	return nil
}

func setBlockSize(c *class, v string) (err error) {
	c.params.BlockSize, err = inRange(v, minBlock, maxBlock)
	if err == nil && c.params.BlockSize&(c.params.BlockSize-1) != 0 {
		err = fmt.Errorf("not a power of two")
	}
	return err
}

func setLogSize(c *class, v string) (err error) {
	c.params.LogSize, err = inRange(v, minLog, maxLog)
	if err == nil && c.params.LogSize%minLog != 0 {
		err = fmt.Errorf("not whole Mi")
	}
	return err
}

func inRange(v string, lo, hi int64) (int64, error) {
	n, err := ParseQuantity(v)
	if err != nil {
		return 0, err
	}
	if n < lo || n > hi {
		return 0, fmt.Errorf("not from %s to %s", formatQuantity(lo), formatQuantity(hi))
	}
	return n, nil
}

func setSectorSize(c *class, v string) error {
	n, err := ParseQuantity(v)
	if err != nil {
		return err
	}
	if n != 512 && n != 4096 {
		return fmt.Errorf("no such sector size")
	}
	c.params.LogicalSectorSize = int(n)
	return nil
}

func setFSType(c *class, v string) error {
	if !knownFS(v) {
		return fmt.Errorf("no such filesystem")
	}
	if c.params.FSType != "" && c.params.FSType != v {
		return fmt.Errorf("the class also says %s", c.params.FSType)
	}
	c.params.FSType = v
	return nil
}

// setMkfsOptions keeps the text; the node splits it at blanks and runs no
// shell, so quotes have no meaning and are refused.
func setMkfsOptions(c *class, v string) error {
	if len(v) > maxMkfs {
		return fmt.Errorf("longer than %d bytes", maxMkfs)
	}
	for _, r := range v {
		if r < 0x20 || r > 0x7e || strings.ContainsRune("\"'`\\$", r) {
			return fmt.Errorf("contains %q", r)
		}
	}
	c.params.MkfsOptions = strings.Join(strings.Fields(v), " ")
	return nil
}
