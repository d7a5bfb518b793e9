package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDockerfile: the driver's Dockerfile is understood to the last word.
func TestDockerfile(t *testing.T) {
	r, err := ReadDockerfile("../../../../Dockerfile", map[string]string{"VERSION": "v9"})
	if err != nil {
		t.Fatal(err)
	}
	if r.Suite != "bookworm" || r.User != "65532:65532" || len(r.Entrypoint) != 1 || r.Entrypoint[0] != "/usr/local/bin/vhdx-csi" {
		t.Errorf("got %+v", r)
	}
	if got := r.Labels["org.opencontainers.image.version"]; got != "v9" {
		t.Errorf("version label %q, want the build argument", got)
	}
	if len(r.Labels) != 5 || len(r.Run) != 1 || !strings.Contains(r.Run[0], "btrfs-progs e2fsprogs") {
		t.Errorf("labels %q, run %q", r.Labels, r.Run)
	}
	want := []Copy{
		{Built: true, From: "/src/bin/vhdx-csi", To: "/usr/local/bin/vhdx-csi"},
		{Built: true, From: "/src/bin/vhdxctl", To: "/usr/local/bin/vhdxctl"},
		{From: "LICENSE", To: "/usr/share/doc/csi-driver-vhdx/LICENSE"},
	}
	if len(r.Copies) != len(want) {
		t.Fatalf("copies %+v", r.Copies)
	}
	for i, c := range want {
		if r.Copies[i] != c {
			t.Errorf("copy %d: %+v, want %+v", i, r.Copies[i], c)
		}
	}
}

func TestUnknownInstruction(t *testing.T) {
	for _, text := range []string{
		"FROM docker.io/library/debian:bookworm-slim\nVOLUME /x\n",
		"FROM docker.io/library/debian:bookworm-slim\nCOPY --chown=1 a b\n",
		"FROM scratch\nRUN x\n",
		"FROM docker.io/library/debian:bookworm-slim AS x\nRUN x\n",
	} {
		file := filepath.Join(t.TempDir(), "Dockerfile")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := ReadDockerfile(file, nil); err == nil {
			t.Errorf("%q gives %+v, want an error", text, r)
		}
	}
}
