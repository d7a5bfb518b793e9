package fuseloop

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

func someKept() kept {
	return kept{
		params:     params{minor: 38, flags: wantFlags, maxIO: maxIO},
		connection: 71, loop: loopdev.Identity{Number: 9, Major: 7, Minor: 9, Sequence: 1 << 40},
		blockSize: 512, volume: volumeOf("vol"),
	}
}

func TestKeptComesBack(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		k := someKept()
		k.readOnly = readOnly
		b := k.encode()
		if len(b) > blockdev.MaxMeta {
			t.Fatalf("%d bytes", len(b))
		}
		got, err := decodeKept(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(k, got, cmp.AllowUnexported(kept{}, params{})); d != "" {
			t.Fatal(d)
		}
	}
}

// What another version or a hostile keeper gives is refused by name, before
// anything is served.
func TestKeptRefused(t *testing.T) {
	seal := func(b []byte) []byte {
		binary.LittleEndian.PutUint32(b[76:], crc32.Checksum(b[:76], castagnoli))
		return b
	}
	with := func(change func(*kept)) []byte {
		k := someKept()
		change(&k)
		return k.encode()
	}
	set := func(at int, v byte) []byte {
		b := someKept().encode()
		b[at] = v
		return b
	}
	for _, c := range []struct {
		name, says string
		b          []byte
	}{
		{"nothing", "0 bytes", nil},
		{"other backend", "not of this backend", []byte("UBLKxxxxxxxx")},
		{"later version", "version 2", seal(set(4, 2))},
		{"short", "has 79 bytes", someKept().encode()[:79]},
		{"long", "has 81 bytes", append(someKept().encode(), 0)},
		{"length", "claims 81", seal(set(6, 81))},
		{"flipped bit", "checksum", set(33, 1)},
		{"old minor", "FUSE 7.35", with(func(k *kept) { k.minor = 35 })},
		{"new minor", "FUSE 7.39", with(func(k *kept) { k.minor = 39 })},
		{"no request", "up to 0 bytes", with(func(k *kept) { k.maxIO = 0 })},
		{"odd request", "4097", with(func(k *kept) { k.maxIO = 4097 })},
		{"huge request", "4294963200", with(func(k *kept) { k.maxIO = 0xfffff000 })},
		{"unknown flag", "does not know 0x8000000000000000", with(func(k *kept) { k.flags |= 1 << 63 })},
		{"no resend", "are needed", with(func(k *kept) { k.flags &^= w.HasResend })},
		{"read-only 2", "unknown bytes", seal(set(52, 2))},
		{"padding", "unknown bytes", seal(set(59, 1))},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := decodeKept(c.b)
			if !errors.Is(err, blockdev.ErrUnresumable) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %q", err, c.says)
			}
		})
	}
}

func FuzzDecodeKept(f *testing.F) {
	f.Add(someKept().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := decodeKept(b)
		if err != nil {
			if !errors.Is(err, blockdev.ErrUnresumable) {
				t.Fatal(err)
			}
			return
		}
		if string(k.encode()) != string(b) {
			t.Fatalf("%x decodes to %+v, which encodes to %x", b, k, k.encode())
		}
	})
}

// A kept device is resumed only as what it is: the same attachment, image and
// connection. Whatever else is refused, every descriptor is closed, and the
// device can be torn down.
func TestResumeRefused(t *testing.T) {
	needRoot(t)
	im := devtest.NewMemImage(8<<20, 512)
	c := blockdev.Config{ID: t.Name(), Image: im}
	var meta []byte
	var held *os.File
	c.Keep = func(m []byte, files ...*os.File) (err error) {
		meta = m
		held, err = dup(files[0])
		return err
	}
	a := New(Options{})
	d, err := a.Attach(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.(blockdev.Releaser).Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	k, err := decodeKept(meta)
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*kept)) []byte {
		k := k
		change(&k)
		return k.encode()
	}
	image := func(im blockdev.Image) blockdev.Config { return blockdev.Config{ID: c.ID, Image: im} }
	fds := count(t, "/proc/self/fd")
	for _, r := range []struct {
		name, says string
		c          blockdev.Config
		meta       []byte
		files      int
	}{
		{"other sequence", "is now", c, with(func(k *kept) { k.loop.Sequence++ }), 1},
		{"other number", "is now", c, with(func(k *kept) { k.loop.Number++ }), 1},
		{"other minor", "is now", c, with(func(k *kept) { k.loop.Minor++ }), 1},
		{"other connection", "FUSE connection", c, with(func(k *kept) { k.connection++ }), 1},
		{"other volume", "another volume", c, with(func(k *kept) { k.volume[0]++ }), 1},
		{"other sectors", "sectors of 4096", image(devtest.NewMemImage(8<<20, 4096)), meta, 1},
		{"smaller image", "only 4194304", image(devtest.NewMemImage(4<<20, 512)), meta, 1},
		{"hostile", "not of this backend", c, make([]byte, blockdev.MaxMeta), 1},
		{"no descriptor", "0 descriptors", c, meta, 0},
		{"two descriptors", "2 descriptors", c, meta, 2},
	} {
		t.Run(r.name, func(t *testing.T) {
			var files []*os.File
			for range r.files {
				f, err := dup(held)
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, f)
			}
			_, err := a.Resume(t.Context(), r.c, r.meta, files)
			if !errors.Is(err, blockdev.ErrUnresumable) || !strings.Contains(err.Error(), r.says) {
				t.Fatalf("got %v, want %q", err, r.says)
			}
			if now := count(t, "/proc/self/fd"); now != fds {
				t.Fatalf("%d descriptors before, %d after", fds, now)
			}
		})
	}
	_ = held.Close()
	if err := a.Teardown(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
}
