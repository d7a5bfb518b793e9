package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestSplitFlags(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want []string
		bad  bool
	}{
		{in: nil},
		{in: []string{"", " "}},
		{in: []string{"noatime", "nodev, nosuid"}, want: []string{"noatime", "nodev", "nosuid"}},
		{in: []string{`context="a:b:c0,c1",ro`}, want: []string{`context="a:b:c0,c1"`, "ro"}},
		{in: []string{`context="a`}, bad: true},
		{in: []string{"bind"}, bad: true},
		{in: []string{"noatime,REMOUNT"}, bad: true},
		{in: []string{"loop=/dev/loop9"}, bad: true},
		{in: []string{"X-mount.mkdir=0777"}, bad: true},
		{in: []string{"a\nb"}, bad: true},
	} {
		got, err := splitFlags(c.in)
		if c.bad != errors.Is(err, ErrInvalid) || !c.bad && cmp.Diff(c.want, got) != "" && len(got)+len(c.want) > 0 {
			t.Errorf("%q: got %q, %v", c.in, got, err)
		}
	}
}

func TestBindAttrs(t *testing.T) {
	for _, c := range []struct {
		options    string
		ro         bool
		set, clear uint64
		bad        bool
	}{
		{},
		{ro: true, set: unix.MOUNT_ATTR_RDONLY},
		{options: "rw", ro: true, set: unix.MOUNT_ATTR_RDONLY},
		{options: "ro,rw", clear: unix.MOUNT_ATTR_RDONLY},
		{options: "noexec,exec,nosuid", set: unix.MOUNT_ATTR_NOSUID, clear: unix.MOUNT_ATTR_NOEXEC},
		{options: "noatime,relatime", clear: unix.MOUNT_ATTR__ATIME},
		{options: "relatime,noatime", set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
		{options: "staged"},
		{options: "data=journal", bad: true},
	} {
		options, err := splitFlags([]string{c.options})
		if err != nil {
			t.Fatal(err)
		}
		got, err := bindAttrs(options, []string{"staged"}, c.ro)
		if c.bad != errors.Is(err, ErrIncompatible) || !c.bad && got != (mountAttrs{c.set, c.clear}) {
			t.Errorf("%q: got %#x, %v", c.options, got, err)
		}
	}
}

func TestMkfsOptions(t *testing.T) {
	for _, c := range []struct {
		fs, in string
		want   []string
		bad    bool
	}{
		{fs: "ext4", in: ""},
		{fs: "ext4", in: ` -m0  -E "stride=4,stripe_width=8" -L 'my disk'`, want: []string{"-m", "0", "-E", "stride=4,stripe_width=8", "-L", "my disk"}},
		{fs: "btrfs", in: "--csum=xxhash --mixed -O ^no-holes", want: []string{"--csum", "xxhash", "--mixed", "-O", "^no-holes"}},
		{fs: "xfs", in: "-m reflink=1 -i size=1024", want: []string{"-m", "reflink=1", "-i", "size=1024"}},
		{fs: "ext4", in: "/dev/sda", bad: true},
		{fs: "ext4", in: "-F /dev/sda", bad: true},
		{fs: "ext4", in: "-d /etc", bad: true},
		{fs: "ext4", in: "-n", bad: true},
		{fs: "ext4", in: "-J device=UUID=1", bad: true},
		{fs: "ext4", in: "-J size=4,device=UUID=1", bad: true},
		{fs: "ext4", in: "-L", bad: true},
		{fs: "ext4", in: "-L a b", bad: true},
		{fs: "ext4", in: `-L "a`, bad: true},
		{fs: "ext4", in: "-O $(reboot)/x", bad: true},
		{fs: "ext4", in: "-L -F", bad: true},
		{fs: "xfs", in: "-N", bad: true},
		{fs: "xfs", in: "-l logdev=x", bad: true},
		{fs: "xfs", in: "-d name=x", bad: true},
		{fs: "xfs", in: "-p proto", bad: true},
		{fs: "btrfs", in: "--rootdir=x", bad: true},
		{fs: "ntfs", in: "", bad: true},
	} {
		got, err := parseMkfsOptions(c.fs, c.in)
		if c.bad != errors.Is(err, ErrInvalid) || c.bad != (CheckMkfsOptions(c.fs, c.in) != nil) || cmp.Diff(c.want, got) != "" {
			t.Errorf("%s %q: got %q, %v", c.fs, c.in, got, err)
		}
	}
}

func TestMkfsCommand(t *testing.T) {
	for _, c := range []struct {
		fs, user string
		zeroed   bool
		want     string
	}{
		{"ext4", "", true, "-F -q -E nodiscard,assume_storage_prezeroed=1 -m 0 -e remount-ro -b 4096 /dev/x"},
		{"ext4", "", false, "-F -q -E nodiscard,lazy_itable_init=1,lazy_journal_init=0 -m 0 -e remount-ro -b 4096 /dev/x"},
		{"ext4", "-m 5 -E stride=4 -b 1024", true, "-F -q -E nodiscard,assume_storage_prezeroed=1,stride=4 -e remount-ro -m 5 -b 1024 /dev/x"},
		{"xfs", "", true, "-f -q -K -s size=4096 /dev/x"},
		{"xfs", "-K -s size=512", true, "-f -q -K -s size=512 /dev/x"},
		{"btrfs", "--nodiscard", true, "-f -q --nodiscard /dev/x"},
		{"btrfs", "-d single", true, "-f -q -K -d single /dev/x"},
	} {
		user, err := parseMkfsOptions(c.fs, c.user)
		if err != nil {
			t.Fatal(err)
		}
		name, args := mkfsCommand(c.fs, user, "/dev/x", c.zeroed)
		if got := strings.Join(args, " "); name != "mkfs."+c.fs || got != c.want {
			t.Errorf("%s %q:\n got %s\nwant %s", name, c.user, got, c.want)
		}
	}
}

func TestRealPath(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(dir+"/real", 0o700), os.Symlink("real", dir+"/link"), os.Symlink("link", dir+"/real/last")); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		dir + "/link/x":       dir + "/real/x",
		dir + "/link/a/b/c":   dir + "/real/a/b/c",
		dir + "/link/last":    dir + "/real/last", // the last one is not followed
		dir + "/link":         dir + "/link",
		"/no/such/dir/at/all": "/no/such/dir/at/all",
		"some/path":           "some/path",
		"/x":                  "/x",
		"":                    ".",
	} {
		if got := realPath(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func sampleEntry() entry {
	return entry{
		Version: entryVersion, Volume: "vol", Node: "n", Boot: "b", FSType: "ext4", MountFlags: []string{"noatime"},
		Device: &deviceID{Path: "/dev/loop7", Major: 7, Minor: 7}, Staging: []string{"/a/b", "/c"},
		Targets: []target{{Path: "/t", Staging: "/a/b", ReadOnly: true, MountFlags: []string{`context="a,b"`}, SingleWriter: true}},
	}
}

func TestEntryIdentity(t *testing.T) {
	e := sampleEntry()
	b, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeEntry(entryName("vol"), b)
	if err != nil || cmp.Diff(e, got) != "" {
		t.Fatalf("%v: %s", err, cmp.Diff(e, got))
	}
	e.Volume = "\xff"
	if _, err := e.encode(); err == nil {
		t.Fatal("an id that JSON changes was written")
	}
	e = sampleEntry()
	for i := range 300 {
		e = e.withTarget(target{Path: "/" + strings.Repeat("x", 4000) + string(rune('a'+i%26)) + strings.Repeat("y", i%60), Staging: "/a/b"})
	}
	if _, err := e.encode(); err == nil {
		t.Fatal("an entry that cannot be read back was written")
	}
}

// I-NODE-2 reads: whatever is decoded is safe to act upon, and encodes to the same.
func FuzzDecodeEntry(f *testing.F) {
	good, err := sampleEntry().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.ReplaceAll(good, []byte("/a/b"), []byte("/a/../b")))
	f.Add(bytes.ReplaceAll(good, []byte("/dev/loop7"), []byte("loop7")))
	f.Add([]byte(`{"version":1,"volume":"vol","boot":"b","staging":["/"]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		name := entryName("vol")
		e, err := decodeEntry(name, b)
		if err != nil {
			return
		}
		if entryName(e.Volume) != name {
			t.Fatalf("entry of %q in %s", e.Volume, name)
		}
		paths := append([]string{}, e.Staging...)
		for _, x := range e.Targets {
			paths = append(paths, x.Path)
		}
		for _, p := range paths {
			if !filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/" {
				t.Fatalf("path %q", p)
			}
		}
		out, err := e.encode()
		if err != nil {
			t.Fatalf("read but not written: %v", err)
		}
		again, err := decodeEntry(name, out)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(e)
		c, _ := json.Marshal(again)
		if !bytes.Equal(a, c) {
			t.Fatalf("%s\n%s", a, c)
		}
	})
}

func FuzzSuperblock(f *testing.F) {
	f.Add([]byte("XFSB"), []byte(strings.Repeat("\x00", 0x38)+"\x53\xef"), []byte(strings.Repeat("\x00", 0x40)+"_BHRfS_M"), int64(1<<30))
	f.Fuzz(func(t *testing.T, xfs, ext4, btrfs []byte, size int64) {
		b := make([]byte, superBytes)
		copy(b, xfs)
		copy(b[ext4Super:btrfsSuper], ext4)
		copy(b[btrfsSuper:], btrfs)
		for _, want := range fsTypes {
			s, err := readSuperblock(bytes.NewReader(b), superBytes, want)
			if err != nil {
				t.Fatal(err)
			}
			s.growable(size)
		}
	})
}
