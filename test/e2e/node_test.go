package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// entry is the driver's journal file for a volume.
func entry(handle string) string {
	sum := sha256.Sum256([]byte(handle))
	return filepath.Join(stateDir, "entries", hex.EncodeToString(sum[:])+".json")
}

// device is the loop device of a volume, such as loop3, or "". It reads sysfs
// only: a device may wait for its server.
func device(handle string) string {
	sum := sha256.Sum256([]byte(handle))
	return devices()["csi-vhdx-"+hex.EncodeToString(sum[:16])]
}

// devices are the driver's loop devices on this machine, by the name of their
// backing file. Other tests on the machine may have some too.
func devices() map[string]string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is well-formed
	found := map[string]string{}
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			continue // it went away
		}
		base, _, _ := strings.Cut(filepath.Base(strings.TrimSpace(string(content))), " ")
		if strings.HasPrefix(base, "csi-vhdx-") {
			found[base] = strings.Split(f, "/")[3]
		}
	}
	return found
}

// deviceSize is in bytes.
func (e *env) deviceSize(handle string) int64 {
	e.Helper()
	content, err := os.ReadFile(filepath.Join("/sys/block", device(handle), "size"))
	if err != nil {
		e.Fatal(err)
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
	if err != nil {
		e.Fatal(err)
	}
	return sectors * 512
}

// processes gives the ids of those with this name.
func processes(name string) []int {
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	var found []int
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err == nil && strings.TrimSpace(string(content)) == name {
			pid, _ := strconv.Atoi(strings.Split(f, "/")[2])
			found = append(found, pid)
		}
	}
	return found
}

// mountIDs are the mounts on a volume's device, by their ids: a new one has another.
func mountIDs(handle string) []string {
	content, _ := os.ReadFile("/proc/self/mountinfo")
	number, _ := os.ReadFile(filepath.Join("/sys/block", device(handle), "dev"))
	var ids []string
	for line := range strings.SplitSeq(string(content), "\n") {
		if f := strings.Fields(line); len(f) > 4 && f[2] == strings.TrimSpace(string(number)) {
			ids = append(ids, f[0]+" "+f[4])
		}
	}
	return ids
}

// gone says what of a volume is still on this node.
func gone(pv *corev1.PersistentVolume) error {
	handle := pv.Spec.CSI.VolumeHandle
	if d := device(handle); d != "" {
		return fmt.Errorf("device %s of volume %s is still there", d, handle)
	}
	if _, err := os.Stat(entry(handle)); err == nil {
		return fmt.Errorf("volume %s is still in the node's journal", handle)
	}
	return nil
}
