package fuseloop

import (
	"errors"
	"os"
	"strings"
	"testing"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

func TestResendOf(t *testing.T) {
	const has = w.HasResend
	for _, c := range []struct {
		flags          uint64
		release        string
		missing, doubt string
	}{
		{0, "6.8.0-45-generic", "does not send", ""},
		{0, "6.18.44", "does not send", ""},
		{0, "gibberish", "does not send", ""},
		{has, "5.14.0-570.el9.x86_64", "", "by backport"},
		{has, "6.9.0", "can damage", ""},
		{has, "6.9.3-arch1", "can damage", ""},
		{has, "6.9", "can damage", ""},
		{has, "6.9.4", "", "CVE-2026-64265"},
		{has, "6.10.0", "", "CVE-2026-64265"},
		{has, "6.12.95+deb13-amd64", "", "CVE-2026-64265"},
		{has, "6.12.96+deb13-amd64", "", ""},
		{has, "6.13.0", "", "CVE-2026-64265"},
		{has, "6.18.38", "", "CVE-2026-64265"},
		{has, "6.18.39-fc", "", ""},
		{has, "7.0.9", "", "CVE-2026-64265"},
		{has, "7.1.3", "", "CVE-2026-64265"},
		{has, "7.1.4", "", ""},
		{has, "7.2.0-rc1", "", ""},
		{has, "next-20260901", "", "does not tell"},
	} {
		missing, doubt := resendOf(c.flags, c.release)
		if !strings.Contains(missing, c.missing) || (missing == "") != (c.missing == "") ||
			!strings.Contains(doubt, c.doubt) || (doubt == "") != (c.doubt == "") {
			t.Errorf("%s with flags %#x: missing %q, doubt %q", c.release, c.flags, missing, doubt)
		}
	}
}

// A kernel that would lose what is in flight is refused, and nothing is left;
// told otherwise the device is made, nothing is kept of it, and that is said.
func TestWithoutResend(t *testing.T) {
	needRoot(t)
	kept := 0
	c := blockdev.Config{
		ID: t.Name(), Image: devtest.NewMemImage(8<<20, 512),
		Keep: func([]byte, ...*os.File) error { kept++; return nil },
	}
	_, err := New(Options{release: "6.9.2"}).Attach(t.Context(), c)
	if !errors.Is(err, blockdev.ErrUnavailable) || !strings.Contains(err.Error(), "--allow-device-loss") {
		t.Fatalf("got %v", err)
	}
	if found, err := loopdev.Find(tagOf(c.ID)); err != nil || len(found) != 0 {
		t.Fatalf("left: %+v, %v", found, err)
	}
	var notes []string
	o := Options{release: "6.9.2", AllowWithoutResend: true, Note: func(_, text string) { notes = append(notes, text) }}
	d, err := New(o).Attach(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if kept != 0 || !strings.Contains(strings.Join(notes, "\n"), "will cost this device") {
		t.Fatalf("kept %d times, notes %q", kept, notes)
	}
}
