package vhdx_test

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// sampleDir holds images that other software wrote.
const sampleDir = "../../../shared/vhdx-samples"

// A sample is an image of a known content.
type sample struct {
	name          string // compressed
	sum, raw      string // SHA-256 of the image and of the virtual disk, its log replayed
	size, block   int64
	dirty         bool
	allocated     int64
	creatorPrefix string
}

const dirtySample = "iotest-dirtylog-10G-4M.vhdx.bz2"

var samples = []sample{
	{
		name: "iotest-dynamic-1G.vhdx.bz2", size: gib, block: 32 * mib, allocated: 3, creatorPrefix: "Microsoft Windows",
		sum: "a4fb24fa51fb4852d5a6bdc2b390a91b0a4e19b47696edc5a00c816067257402",
		raw: "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478",
	},
	{
		name: dirtySample, size: 10 * gib, block: mib, dirty: true, allocated: 18, creatorPrefix: "QEMU",
		sum: "511daba998dba208ffc57a7814194d5dd3afb7c314731b904ff1682e3fb4951a",
		raw: "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f",
	},
	{
		name: "test-disk2vhd.vhdx.bz2", size: 256 * mib, block: 2 * mib, allocated: 128,
		sum: "5b6721d4f26ef13d259c380a7327b794d1c6dd79e386737d77e8d88f43259812",
		raw: "96d964042be9b58dda1725567abfb0cf9fd8380e2118754afa979c2ad445938a",
	},
	{
		name: "btrfs.vhdx.gz", size: gib, block: 32 * mib, allocated: 2, creatorPrefix: "Microsoft Windows",
		sum: "e1ec34ba6fea6a047e5b97f6b9355798f4bf22e5d9fb120013d912a41babf2a4",
		raw: "0b959f9cb4e18348ad8b646f152178282542c8304f02fddf765e3fd1a1de6864",
	},
	{
		name: "swap.vhdx.gz", size: 10 * gib, block: 32 * mib, allocated: 1, creatorPrefix: "Microsoft Windows",
		sum: "e5427cf8e9a9dfc28f2c1f24e2a7294e62b3e48bcff25b458f51871092540582",
		raw: "60dd30b4c74361427d1089510cabb36e2eeda0cc4747f467ea43173acd358c49",
	},
	{
		name: "xfs5.vhdx.gz", size: 10 * gib, block: 32 * mib, allocated: 5, creatorPrefix: "Microsoft Windows",
		sum: "df4069a8cb6ca640abac262f2d1809b9eff0cc78b16aca802f9f92746db77aa3",
		raw: "edc5d630b2da0ddb08992afb58ded06ffb56b884e184b4974fda16e31b7e6817",
	},
}

// unpack writes the sample into a directory of its own and checks that it is
// the one that is meant.
func (s sample) unpack(t *testing.T) string {
	t.Helper()
	in, err := os.Open(filepath.Join(sampleDir, s.name))
	if err != nil {
		t.Skipf("the samples of other software are not here: %v", err)
	}
	defer in.Close()
	var r io.Reader
	switch filepath.Ext(s.name) {
	case ".bz2":
		r = bzip2.NewReader(in)
	case ".gz":
		if r, err = gzip.NewReader(in); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha256.New()
	path := filepath.Join(t.TempDir(), strings.TrimSuffix(s.name, filepath.Ext(s.name)))
	if err := writeSparse(path, io.TeeReader(r, sum)); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != s.sum {
		t.Fatalf("%s is another image: SHA-256 %s, want %s", s.name, got, s.sum)
	}
	return path
}

// writeSparse writes a file with holes where whole MiB are zero.
func writeSparse(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, zero := make([]byte, mib), make([]byte, mib)
	for off := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		if !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return f.Truncate(off)
		case err != nil:
			return err
		}
	}
}

func rawSum(t *testing.T, im *vhdx.Image) string {
	t.Helper()
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, onlyReader{io.NewSectionReader(im, 0, im.Size())}, make([]byte, mib)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

type onlyReader struct{ io.Reader }

// Read-only, a dirty log in memory: the content is the known one, and not a
// byte of the file changes.
func TestSamplesRead(t *testing.T) {
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			path := s.unpack(t)
			im := open(t, path, vhdx.OpenOptions{ReadOnly: true})
			info := im.Info()
			if info.VirtualSize != s.size || info.BlockSize != s.block || info.AllocatedBlocks != s.allocated || info.LogicalSectorSize != 512 || info.Fixed || info.HasParent {
				t.Fatalf("info %+v", info)
			}
			if (info.Replay.Entries > 0) != s.dirty || !strings.HasPrefix(info.Creator, s.creatorPrefix) {
				t.Fatalf("info %+v", info)
			}
			if s.size < gib || !testing.Short() {
				if got := rawSum(t, im); got != s.raw {
					t.Fatalf("content has SHA-256 %s, want %s", got, s.raw)
				}
			}
			closeImage(t, im)
			s.unchanged(t, path)
		})
	}
}

func (s sample) unchanged(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != s.sum {
		t.Fatal("the file was changed")
	}
}

func findDirtySample() sample {
	for _, s := range samples {
		if s.name == dirtySample {
			return s
		}
	}
	panic("no such sample")
}

// checkDirtySample checks the content of the dirty sample with its log
// replayed: 0xa5 over the first 18 MiB, nothing else.
func checkDirtySample(t *testing.T, im *vhdx.Image) {
	t.Helper()
	if n := im.Info().AllocatedBlocks; n != 18 {
		t.Fatalf("%d blocks allocated, want 18: the log was not applied", n)
	}
	p := make([]byte, 18*mib)
	if _, err := im.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if want := bytes.Repeat([]byte{0xa5}, len(p)); !bytes.Equal(p, want) {
		t.Fatal("the first 18 MiB are not 0xa5")
	}
}

func TestSampleDirtyRefused(t *testing.T) {
	s := findDirtySample()
	path := s.unpack(t)
	for _, readOnly := range []bool{false, true} {
		_, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: readOnly, RefuseDirty: true})
		if !errors.Is(err, vhdx.ErrLogReplayRequired) {
			t.Fatalf("read-only %v: %v", readOnly, err)
		}
		if command := fmt.Sprintf("check -r all '%s'", path); !strings.Contains(err.Error(), command) || strings.Count(err.Error(), path) < 2 {
			t.Fatalf("error names not file and command %q: %v", command, err)
		}
	}
	s.unchanged(t, path)
}

func TestSampleDirtyReadInMemory(t *testing.T) {
	s := findDirtySample()
	path := s.unpack(t)
	im := open(t, path, vhdx.OpenOptions{ReadOnly: true})
	checkDirtySample(t, im)
	if r := im.Info().Replay; r.Entries != 1 || r.Pages != 1 {
		t.Fatalf("replay %+v, want the one entry that carries the header's log GUID", r)
	}
	closeImage(t, im)
	s.unchanged(t, path)
}

// Replayed by us and by QEMU the disk is the same, and QEMU agrees.
func TestSampleDirtyReplayed(t *testing.T) {
	s := findDirtySample()
	ours, theirs := s.unpack(t), s.unpack(t)
	im := open(t, ours, vhdx.OpenOptions{ReadOnly: true})
	before := im.Info()
	closeImage(t, im)

	im = open(t, ours, vhdx.OpenOptions{})
	checkDirtySample(t, im)
	after := im.Info()
	closeImage(t, im)
	if after.Replay.Entries != 1 || after.DataWriteGUID != before.DataWriteGUID || after.FileWriteGUID == before.FileWriteGUID {
		t.Fatalf("before %+v, after %+v: a replay changes the FileWriteGuid alone", before, after)
	}
	im = open(t, ours, vhdx.OpenOptions{RefuseDirty: true})
	checkDirtySample(t, im)
	closeImage(t, im)
	askCheck(t, ours)

	if out := ask(t, "qemu-img", "check", "-f", "vhdx", "-r", "all", theirs); !strings.Contains(out, "repaired") {
		t.Fatalf("qemu-img check -r all: %s", out)
	}
	im = open(t, theirs, vhdx.OpenOptions{ReadOnly: true, RefuseDirty: true})
	checkDirtySample(t, im)
	closeImage(t, im)
	if !testing.Short() {
		ask(t, "qemu-img", "compare", "-f", "vhdx", "-F", "vhdx", ours, theirs)
	}
}

// Images of other software are written to, closed, and still sound: two
// identical headers, an unaligned end, states 0, 2 and 6 mixed, a dirty log.
func TestSamplesWritten(t *testing.T) {
	for _, s := range samples {
		if s.size > gib || s.size == gib && testing.Short() {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			path := s.unpack(t)
			raw := filepath.Join(t.TempDir(), "raw")
			ask(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw)
			w := openTwin(t, path, raw, vhdx.OpenOptions{GrowthStep: 4 * mib})
			for i := range int64(20) {
				w.write(t, i*s.size/20+i*512, 70*512, byte(i+1))
				if i%5 == 4 {
					w.flush(t)
				}
			}
			w.close(t)
			askCheck(t, path)
			askCompare(t, path, raw)
		})
	}
}
