package guest

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// TestRefuseNFS mounts an export with options that can lose data. The pool is
// refused by the option's name, and opens with those that the docs name.
func TestRefuseNFS(t *testing.T) {
	b := export(t, newBacking(t, "ext4", 256*mib))
	for _, c := range []struct{ options, refused string }{
		{nfsOptions, ""},
		{"vers=4.1,hard", ""},
		{"vers=4.2", ""}, // hard is the default
		{"vers=4.2,soft", "soft"},
		{"vers=4.2,softerr", "softerr"},
		{"vers=4.2,hard,local_lock=all", ""}, // of version 3 only: the kernel ignores it
	} {
		t.Run(c.options, func(t *testing.T) { opens(t, b.mount(t, c.options), c.refused) })
	}
}

// opens opens a pool, or demands that it is refused for an option's sake.
func opens(t *testing.T, dir, refused string) {
	t.Helper()
	p, err := pool.Open(pool.Options{Name: "p", Dir: dir})
	if err == nil {
		p.Close()
	}
	mounts, _ := os.ReadFile("/proc/self/mounts") // for the message
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+dir+" ") {
			t.Log(strings.TrimSpace(line))
		}
	}
	unsafe, ok := errors.AsType[*pool.UnsafeShareError](err)
	switch {
	case refused == "":
		must(t, err)
	case !ok || unsafe.Reasons[0].Option != refused:
		t.Errorf("want a refusal of %s, got %v", refused, err)
	}
}
