package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

const loopMajor = 7

// Path is the node of loop device n.
func Path(n int) string { return "/dev/loop" + strconv.Itoa(n) }

// Number is the n of a path that Path made.
func Number(dev string) (int, error) {
	digits, ok := strings.CutPrefix(dev, "/dev/loop")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a loop device", dev)
	}
	return n, nil
}

// Device is a bound loop device.
type Device struct {
	Number int
	Tag    string // base name of the backing file
	Size   int64
}

// List gives all bound loop devices. It reads sysfs only.
func List() ([]Device, error) {
	ents, err := os.ReadDir("/sys/block")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var devs []Device
	for _, e := range ents {
		n, err := Number("/dev/" + e.Name())
		if err != nil {
			continue
		}
		if tag := tagOf(n); tag != "" {
			devs = append(devs, Device{Number: n, Tag: tag, Size: Size(n)})
		}
	}
	return devs, nil
}

// Find gives the bound devices with this tag.
func Find(tag string) ([]Device, error) {
	all, err := List()
	if err != nil {
		return nil, err
	}
	var found []Device
	for _, d := range all {
		if d.Tag == tag {
			found = append(found, d)
		}
	}
	return found, nil
}

// Size is the present size of loop device n in bytes; 0 when there is none.
func Size(n int) int64 {
	b, err := os.ReadFile("/sys/block/loop" + strconv.Itoa(n) + "/size")
	if err != nil {
		return 0
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return sectors * 512 // always in these units, whatever the block size
}

// Identity names one life of a loop device.
type Identity struct {
	Number       int
	Major, Minor uint32
	// Sequence is the kernel's diskseq: another one with each file that is
	// attached, never used twice until the machine starts again. 0: the kernel
	// does not tell (before Linux 5.15).
	Sequence uint64
}

func (i Identity) String() string {
	return fmt.Sprintf("%s (%d:%d, sequence %d)", Path(i.Number), i.Major, i.Minor, i.Sequence)
}

// Identify reads sysfs only.
func Identify(n int) (Identity, error) {
	dir := "/sys/block/loop" + strconv.Itoa(n)
	i := Identity{Number: n}
	dev, err := os.ReadFile(dir + "/dev")
	if err != nil {
		return i, fmt.Errorf("identify %s: %w", Path(n), err)
	}
	if _, err := fmt.Sscanf(string(dev), "%d:%d", &i.Major, &i.Minor); err != nil {
		return i, fmt.Errorf("identify %s: %s/dev says %q: %w", Path(n), dir, dev, err)
	}
	seq, err := os.ReadFile(dir + "/diskseq")
	if errors.Is(err, fs.ErrNotExist) {
		return i, nil
	}
	if err == nil {
		i.Sequence, err = strconv.ParseUint(strings.TrimSpace(string(seq)), 10, 64)
	}
	if err != nil {
		return i, fmt.Errorf("identify %s: %w", Path(n), err)
	}
	return i, nil
}

func bound(n int, tag string) bool { return tagOf(n) == tag }

// tagOf is the base name of the backing file, "" when the device is free.
func tagOf(n int) string {
	file := attribute(n, "backing_file")
	if file == "" {
		return ""
	}
	// What the kernel adds when nobody can reach the file by name any more.
	return path.Base(strings.TrimSuffix(file, " (deleted)"))
}

// attribute reads one file of the device's loop directory, which exists only
// while it is bound.
func attribute(n int, name string) string {
	b, err := os.ReadFile("/sys/block/loop" + strconv.Itoa(n) + "/loop/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
