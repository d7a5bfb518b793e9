package e2e

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
)

// TestSnapshotMetadata backs a raw volume up as a backup program does, by what
// the metadata sidecar says has changed while a pod wrote, and puts the
// increments together again. Every snapshot comes back byte for byte, and no
// increment names a sector that nobody wrote.
func TestSnapshotMetadata(t *testing.T) {
	t.Parallel()
	e := start(t)
	const size, filled = 48 * mib, 8 * mib
	p := e.backupProgram("backup")
	b := &backup{backupProgram: p, shown: e.token(p.cluster, "backup", p.audience), class: e.class("", "blockSize=1Mi"), disk: make([]byte, size)}
	e.claim("data", b.class, size, corev1.PersistentVolumeBlock)
	writer := e.run(pod("writer", "data", true, "fill", filled, 1))

	b.take("s1")
	for _, x := range b.named {
		if x.off+x.size > filled {
			t.Errorf("the first map names %+v, and only %d bytes are written", x, filled)
		}
	}
	first := p.handle("s1")
	for i, step := range []struct{ write, want []extent }{
		{ // in blocks that have data, over the edge of two, where there was nothing, and at the very end
			write: []extent{{4096, 4096}, {12288, 8192}, {3*mib - 4096, 8192}, {20*mib + 65536, 4096}, {30 * mib, mib}, {size - 4096, 4096}},
			want:  []extent{{4096, 4096}, {12288, 8192}, {3*mib - 4096, 8192}, {20*mib + 65536, 4096}, {30 * mib, mib}, {size - 4096, 4096}},
		},
		{ // side by side, twice, and not in order
			write: []extent{{40 * mib, 4096}, {12288, 4096}, {40*mib + 4096, 4096}, {12288, 4096}, {0, 4096}},
			want:  []extent{{0, 4096}, {12288, 4096}, {40 * mib, 8192}},
		},
	} {
		for _, x := range step.write {
			e.write(writer, x, i+2)
		}
		b.take([]string{"s2", "s3"}[i])
		if !reflect.DeepEqual(b.named, step.want) {
			t.Errorf("increment %d names %v, want %v", i+2, b.named, step.want)
		}
		// What a program does: the newest alone is kept.
		e.drop(snapshots, []string{"s1", "s2"}[i])
	}
	if _, _, err := p.delta(b.shown, first, "s3"); grpcstatus.Code(err) != codes.NotFound {
		t.Errorf("the delta from a snapshot that is gone: %v", err)
	}
	b.refused()
}

// backup is what a backup program has.
type backup struct {
	*backupProgram
	shown string // its token
	class string
	last  string   // handle of the newest snapshot
	named []extent // what the last increment named
	disk  []byte   // the increments, over each other
}

// take makes a snapshot, copies what the sidecar names, and nothing else, from a
// volume restored from it, and compares the whole.
func (b *backup) take(name string) {
	b.Helper()
	b.snapshot(name, "data")
	began := time.Now()
	var size int64
	var err error
	if b.last == "" {
		b.named, size, err = b.allocated(b.shown, name)
	} else {
		b.named, size, err = b.delta(b.shown, b.last, name)
	}
	if err != nil {
		b.Fatalf("map of %s: %v", name, err)
	}
	b.took("map of "+name, began)
	if size != int64(len(b.disk)) {
		b.Fatalf("%s has %d bytes, says the sidecar; the volume has %d", name, size, len(b.disk))
	}
	restored := "from-" + name
	b.claimFrom(restored, b.class, size, corev1.PersistentVolumeBlock, "VolumeSnapshot", name)
	b.run(pod(restored, restored, true, "hold", mib, 1))
	whole := b.read(b.bound(restored).Spec.CSI.VolumeHandle)
	for _, x := range b.named {
		copy(b.disk[x.off:x.off+x.size], whole[x.off:])
	}
	if !bytes.Equal(b.disk, whole) {
		b.Errorf("%s comes back as something else", name)
	}
	b.last = b.handle(name)
	b.remove(restored)
}

// read reads the device of a volume that a pod has.
func (e *env) read(handle string) []byte {
	e.Helper()
	f, err := os.Open("/dev/" + device(handle))
	if err != nil {
		e.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	content, err := io.ReadAll(f)
	if err != nil {
		e.Fatal(err)
	}
	return content
}

// write has a pod's workload write at one place, while it runs.
func (e *env) write(p *corev1.Pod, x extent, generation int) {
	e.Helper()
	at := "http://" + net.JoinHostPort(p.Status.PodIP, "8080") + "/write?at=" + strconv.FormatInt(x.off, 10) +
		"&size=" + strconv.FormatInt(x.size, 10) + "&generation=" + strconv.Itoa(generation)
	answer, err := asker.Post(at, "", nil)
	if err != nil {
		e.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		e.Fatalf("write %+v: %s: %s", x, answer.Status, text)
	}
}

// refused: nobody gets a map without a token, with one that is for another
// audience, or without the right to read the namespace's snapshots.
func (b *backup) refused() {
	b.Helper()
	b.account("stranger")
	for _, c := range []struct {
		what, token string
		code        codes.Code
	}{
		{"no token", "", codes.InvalidArgument},
		{"a token that is none", "nonsense", codes.Unauthenticated},
		{"a token for another audience", b.token(b.cluster, "backup", "https://kubernetes.default.svc"), codes.Unauthenticated},
		{"an account without the role", b.token(client, "stranger", b.audience), codes.PermissionDenied},
	} {
		if _, _, err := b.allocated(c.token, "s3"); grpcstatus.Code(err) != c.code {
			b.Errorf("%s: %v, want %v", c.what, err, c.code)
		}
		if _, _, err := b.delta(c.token, b.last, "s3"); grpcstatus.Code(err) != c.code {
			b.Errorf("%s, for a delta: %v, want %v", c.what, err, c.code)
		}
	}
}
