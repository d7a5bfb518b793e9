package driver

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Each call is told once, with the code its caller got and the error behind it.
func TestCallsAreObserved(t *testing.T) {
	var mu sync.Mutex
	var told []Call
	f := newFake()
	conn := serve(t, f, func(c *Config) {
		c.Observe = func(ctx context.Context, call Call) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, call)
			if ctx.Err() != nil {
				t.Errorf("%s is told after its end", call.Method)
			}
		}
	})
	if _, err := csi.NewIdentityClient(conn).Probe(t.Context(), &csi.ProbeRequest{}); err != nil {
		t.Fatal(err)
	}
	f.err = pool.ErrInUse
	_, err := csi.NewControllerClient(conn).DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "v"})
	wantCode(t, err, codes.FailedPrecondition)
	f.err = panicking("boom")
	_, err = csi.NewControllerClient(conn).DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "v"})
	wantCode(t, err, codes.Internal)
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 3 {
		t.Fatalf("%+v", told)
	}
	for i, want := range []Call{
		{Method: "Probe", Code: codes.OK.String()},
		{Method: "DeleteVolume", Volume: "v", Code: codes.FailedPrecondition.String(), Err: pool.ErrInUse},
		{Method: "DeleteVolume", Volume: "v", Code: codes.Internal.String(), Err: errPanic},
	} {
		got := told[i]
		if got.Method != want.Method || got.Volume != want.Volume || got.Code != want.Code || !errors.Is(got.Err, want.Err) ||
			got.Took <= 0 || got.Took > time.Minute {
			t.Errorf("call %d: %+v, want %+v", i, got, want)
		}
	}
}
