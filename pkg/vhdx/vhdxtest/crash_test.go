package vhdxtest_test

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// Sectors of one write are persisted independently, at both sizes, and a
// sector may show any version written since the sync.
func TestTornWrites(t *testing.T) {
	f := vhdxtest.NewFile("a")
	f.Truncate(8192)
	f.Sync()
	f.WriteAt(bytes.Repeat([]byte("1"), 8192), 0)
	f.WriteAt(bytes.Repeat([]byte("2"), 8192), 0)
	halves, sectors := map[string]bool{}, map[string]bool{}
	s := f.Snapshot()
	for i := range 9000 {
		p := s.Plan(7, i)
		b := content(t, s.Image(p))
		for at := 0; at < len(b); at += 512 {
			if !bytes.Equal(b[at:at+512], bytes.Repeat(b[at:at+1], 512)) {
				t.Fatalf("%s: sector at %#x is torn", p.Name, at)
			}
		}
		halves[fmt.Sprintf("%q%q", b[0], b[4096])] = true
		if p.Unit == 512 {
			sectors[fmt.Sprintf("%q%q%q", b[0], b[512], b[8191])] = true
		} else if b[0] != b[4095] || b[4096] != b[8191] {
			t.Fatalf("%s: a sector of 4 KiB is torn", p.Name)
		}
	}
	if len(halves) != 9 || len(sectors) != 27 {
		t.Fatalf("%d of 9 states in sectors of 4 KiB, %d of 27 in sectors of 512 B", len(halves), len(sectors))
	}
}

// A size change and the data it was made for are persisted independently, and
// what a shrink cut off may or may not come back.
func TestSizeChanges(t *testing.T) {
	f := vhdxtest.NewFile("a")
	f.WriteAt([]byte("abcd"), 0)
	f.Sync()
	f.Truncate(2)
	f.Truncate(4)
	f.WriteAt([]byte("ef"), 4)
	want := []string{"ab", "abcd", "ab\x00\x00", "ab\x00\x00ef", "ab\x00\x00\x00\x00", "abcdef", "abcd\x00\x00"}
	got := images(t, f.Snapshot(), 400)
	for _, w := range want {
		if got[w] == 0 {
			t.Errorf("never seen: %q", w)
		}
		delete(got, w)
	}
	if len(got) > 0 {
		t.Fatalf("should not be: %#v", got)
	}
}

func TestPunchedAndZeroedRanges(t *testing.T) {
	for _, zero := range []func(*vhdxtest.File) error{
		func(f *vhdxtest.File) error { return f.PunchHole(4096, 8192) },
		func(f *vhdxtest.File) error { return f.ZeroRange(4096, 8192) },
	} {
		f := vhdxtest.NewFile("a")
		f.WriteAt(bytes.Repeat([]byte("x"), 16384), 0)
		f.Sync()
		if err := zero(f); err != nil {
			t.Fatalf("zero: %v", err)
		}
		got := map[string]bool{}
		for b := range images(t, f.Snapshot(), 100) {
			key := ""
			for at := 0; at < len(b); at += 4096 {
				key += strings.TrimRight(b[at:at+1], "\x00") + "|"
			}
			got[key] = true
		}
		if len(got) != 4 || !got["x|||x|"] || !got["x||x|x|"] || !got["x|x||x|"] || !got["x|x|x|x|"] {
			t.Fatalf("states: %v", got)
		}
	}
}

// A killed process leaves what it wrote readable and no more durable than it was.
func TestKilled(t *testing.T) {
	f := vhdxtest.NewFile("a")
	f.WriteAt([]byte("old"), 0)
	f.Sync()
	f.WriteAt([]byte("new"), 0)
	k := f.Snapshot().Killed()
	if got := string(content(t, k)); got != "new" {
		t.Fatalf("successor reads %q", got)
	}
	if got := images(t, k.Snapshot(), 20); len(got) != 2 {
		t.Fatalf("images: %v", got)
	}
	f.WriteAt(bytes.Repeat([]byte("x"), 1200), 0)
	for half, want := range map[bool]string{false: "new", true: strings.Repeat("x", 512)} {
		if got := string(content(t, f.Snapshot().KilledInside(half))); got != want {
			t.Fatalf("killed inside a write: successor reads %q, not %q", got, want)
		}
	}
	k.Sync()
	if got := images(t, k.Snapshot(), 20); len(got) != 1 || got["new"] == 0 {
		t.Fatalf("images after sync: %v", got)
	}
	if got := images(t, f.Snapshot(), 80); got["old"] == 0 {
		t.Fatalf("the successor's sync made the original durable: %v", got)
	}
}

// The same seed gives the same image; Plan names each fixed strategy once.
func TestPlansRepeat(t *testing.T) {
	f := vhdxtest.NewFile("a")
	for i := range int64(20) {
		f.WriteAt(bytes.Repeat([]byte{byte(i)}, 3000), i*1700)
	}
	s := f.Snapshot()
	var names []string
	for i := range 16 {
		a, b := s.Plan(3, i), f.Snapshot().Plan(3, i)
		if s.Image(a).Hash() != s.Image(b).Hash() {
			t.Fatalf("%s gives two images", a.Name)
		}
		name, _, _ := strings.Cut(a.Name, "(")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) != 15 || strings.Join(names[:3], " ") != "none all last" {
		t.Fatalf("16 plans have %d strategies: %v", len(names), names)
	}
}

// toyLog changes two sectors at once: the copy of both goes to a log, a sync,
// then to their place, a sync, and the log is free again.
type toyLog struct {
	f    *vhdxtest.File
	omit string
}

func (l toyLog) sync(name string) {
	if l.omit != name {
		l.f.Sync()
	}
}

func (l toyLog) put(v byte) {
	entry := bytes.Repeat([]byte{v}, 1024)
	sum := crc32.ChecksumIEEE(entry)
	l.f.WriteAt(append(entry, byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)), 4096)
	l.sync("log before apply")
	l.f.WriteAt(entry[:512], 0)
	l.f.WriteAt(entry[512:], 512)
	l.sync("apply before reuse")
}

// recover replays the log if it is whole and returns the two sectors.
func (l toyLog) recover() [2]byte {
	b := make([]byte, 8192)
	l.f.ReadAt(b, 0)
	entry, sum := b[4096:5120], crc32.ChecksumIEEE(b[4096:5120])
	if [4]byte(b[5120:]) == [4]byte{byte(sum), byte(sum >> 8), byte(sum >> 16), byte(sum >> 24)} && entry[0] != 0 {
		copy(b, entry)
	}
	return [2]byte{b[0], b[512]}
}

// cutToy cuts at each step and returns what is wrong with the first bad image.
func cutToy(omit string) (bad string, images int) {
	f := vhdxtest.NewFile("toy")
	f.Truncate(8192)
	f.Sync()
	distinct := map[uint64]bool{}
	done := byte(0)
	f.OnStep(func(s *vhdxtest.Snapshot) {
		for i := range 60 {
			p := s.Plan(1, i)
			m := s.Image(p)
			distinct[m.Hash()] = true
			got := toyLog{f: m}.recover()
			if bad == "" && (got[0] != got[1] || got[0] != done && got[0] != done+1) {
				bad = fmt.Sprintf("step %d, %s: sectors hold %v, %d is done", s.Step(), p.Name, got, done)
			}
		}
	})
	for v := byte(1); v < 6; v++ {
		toyLog{f, omit}.put(v)
		done = v
	}
	return bad, len(distinct)
}

// The enumerator finds what each missing sync of a small protocol breaks, and
// nothing in the whole one.
func TestToyLog(t *testing.T) {
	bad, n := cutToy("")
	if bad != "" || n < 30 {
		t.Fatalf("whole protocol: %d images, %s", n, bad)
	}
	for _, omit := range []string{"log before apply", "apply before reuse"} {
		bad, _ := cutToy(omit)
		if bad == "" {
			t.Errorf("without the sync of %q no image is bad", omit)
		}
		t.Logf("without %q: %s", omit, bad)
	}
}

func BenchmarkCrashImage(b *testing.B) {
	f := vhdxtest.NewFile("a")
	for i := range int64(20) {
		f.WriteAt(bytes.Repeat([]byte{byte(i)}, 4096), i<<20)
	}
	f.Sync()
	for i := range int64(10) {
		f.WriteAt(bytes.Repeat([]byte{byte(i + 50)}, 4096), i<<20)
	}
	s := f.Snapshot()
	i := 0
	for b.Loop() {
		s.Image(s.Plan(1, i)).Hash()
		i++
	}
}

func BenchmarkClone(b *testing.B) {
	f := vhdxtest.NewFile("a")
	for i := range int64(20) {
		f.WriteAt(bytes.Repeat([]byte{byte(i)}, 4096), i<<20)
	}
	for b.Loop() {
		f.Clone()
	}
}
