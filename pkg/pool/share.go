package pool

import (
	"os"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// checkShare refuses, by name, mount options under which a completed write or
// a lock may not be what it seems.
func checkShare(t *fsx.Tree) error {
	m, err := t.Mount()
	if err != nil {
		return err
	}
	return judge(t.Name(), m, recoverLostLocks())
}

// recoverLostLocks is the NFS client's module parameter of that name.
func recoverLostLocks() bool {
	b, err := os.ReadFile("/sys/module/nfs/parameters/recover_lost_locks")
	return err == nil && strings.HasPrefix(string(b), "Y")
}

// The statfs types of network filesystems, for when the mount table does not
// show the pool's mount.
var networkMagic = map[int64]string{
	0x6969: "nfs", 0xff534d42: "cifs", 0xfe534d42: "smb2", 0x00c36400: "ceph", 0x01021997: "9p",
}

func judge(dir string, m fsx.Mount, recoverLost bool) error {
	e := &UnsafeShareError{Dir: dir, FSType: m.FSType}
	bad := func(option, why string) { e.Reasons = append(e.Reasons, UnsafeOption{option, why}) }
	switch kind, network := networkMagic[m.Magic]; {
	case m.FSType == "" && network:
		e.FSType = kind
		bad("unknown mount", "its options cannot be seen in /proc/self/mountinfo")
	case m.FSType == "nfs" || m.FSType == "nfs4":
		judgeNFS(m, recoverLost, bad)
	default:
		for _, o := range m.Options {
			if why := unsafeOptions[m.FSType][o]; why != "" {
				bad(o, why)
			}
		}
	}
	if len(e.Reasons) == 0 {
		return nil
	}
	return e
}

const (
	whySoft    = "a request that times out fails as if it had not been made, and may still be carried out"
	whyLocal   = "locks are not seen by other machines, so two nodes can write one image"
	whyCached  = "other machines' writes and this machine's are not kept in step"
	whyFlush   = "a flush does not reach the server's disk"
	whyBarrier = "a flush does not reach the disk"
	whyRecover = "a machine that was cut off takes its lost locks back and overwrites its successor's data"
)

// unsafeOptions by filesystem, as the kernel spells them in mountinfo.
var unsafeOptions = map[string]map[string]string{
	"cifs":  cifsOptions,
	"smb3":  cifsOptions,
	"ceph":  {"recover_session=clean": whyRecover},
	"9p":    {"cache=loose": whyCached, "cache=fscache": whyCached},
	"ext4":  {"nobarrier": whyBarrier, "barrier=0": whyBarrier},
	"xfs":   {"nobarrier": whyBarrier},
	"btrfs": {"nobarrier": whyBarrier},
}

var cifsOptions = map[string]string{
	"soft":               whySoft,
	"nobrl":              whyLocal,
	"nolock":             whyLocal,
	"nostrictsync":       whyFlush,
	"cache=loose":        whyCached,
	"cache=ro":           whyCached,
	"cache=singleclient": whyCached,
}

func judgeNFS(m fsx.Mount, recoverLost bool, bad func(option, why string)) {
	version := ""
	for _, o := range m.Options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == "vers" || key == "nfsvers":
			version = o
			if strings.HasPrefix(value, "2") || strings.HasPrefix(value, "3") {
				bad(o, "version 3 locks outlive a dead node and do not fence its writes; use vers=4.1 or later")
			}
		case o == "soft" || o == "softerr":
			bad(o, whySoft)
		case o == "nolock":
			bad(o, whyLocal)
		case key == "local_lock" && value != "none":
			bad(o, whyLocal)
		}
	}
	if version == "" && m.FSType == "nfs" {
		bad("no vers=", "the protocol version cannot be seen and may be 3; use vers=4.1 or later")
	}
	if recoverLost {
		bad("nfs.recover_lost_locks=1", whyRecover)
	}
}
