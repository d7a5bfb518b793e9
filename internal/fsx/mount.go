package fsx

import (
	"io"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount is how a filesystem is mounted.
type Mount struct {
	Point  string
	FSType string // as the kernel calls it; "" if the mount is not in our mount table
	Source string
	// Options of the mount and of the filesystem (super options), each once.
	Options []string
	Magic   int64 // statfs type
}

// Mount says how the tree's filesystem is mounted.
func (t *Tree) Mount() (Mount, error) {
	var m Mount
	err := t.withRoot(func(f *os.File) error {
		return withFD(f, func(fd int) (err error) {
			m, err = mountOf(fd)
			return err
		})
	})
	return m, named("look up the mount of", t.Name(), err)
}

func mountOf(fd int) (Mount, error) {
	var fst unix.Statfs_t
	if err := unix.Fstatfs(fd, &fst); err != nil {
		return Mount{}, err
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return Mount{}, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Mount{}, err
	}
	defer f.Close()
	m, err := FindMount(f, func(i *mountinfo.Info) bool {
		if st.Mask&unix.STATX_MNT_ID != 0 {
			return uint64(i.ID) == st.Mnt_id
		}
		return uint32(i.Major) == st.Dev_major && uint32(i.Minor) == st.Dev_minor // before Linux 5.8
	})
	m.Magic = int64(fst.Type)
	return m, err
}

// FindMount returns the first mount of a mountinfo table that match accepts,
// or the zero Mount.
func FindMount(table io.Reader, match func(*mountinfo.Info) bool) (Mount, error) {
	found, err := mountinfo.GetMountsFromReader(table, func(i *mountinfo.Info) (skip, stop bool) {
		ok := match(i)
		return !ok, ok
	})
	if err != nil || len(found) == 0 {
		return Mount{}, err
	}
	i := found[0]
	m := Mount{Point: i.Mountpoint, FSType: i.FSType, Source: i.Source}
	seen := map[string]bool{}
	for o := range strings.SplitSeq(i.Options+","+i.VFSOptions, ",") {
		if o != "" && !seen[o] {
			seen[o] = true
			m.Options = append(m.Options, o)
		}
	}
	return m, nil
}
