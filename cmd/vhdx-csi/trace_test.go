package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/metrics"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// noVolumes makes none.
type noVolumes struct{ driver.Volumes }

func (noVolumes) CreateVolume(context.Context, pool.Spec) (pool.Volume, error) {
	return pool.Volume{}, errors.New("made by the test")
}

// A call is one span, with its volume and its outcome and without its secrets; a
// probe is none.
func TestSpans(t *testing.T) {
	o := &options{mode: modeController, nodeID: "n1"}
	got := tracetest.NewInMemoryExporter()
	ob := &observer{metrics: metrics.New(metrics.Process{})}
	var end func()
	ob.traces, end = tracing(t.Context(), o, sdktrace.WithSyncer(got))
	defer end()
	s, err := driver.New(t.Context(), driver.Config{
		Observe: ob.call, Stats: ob.traces,
		Controller: &driver.Controller{Volumes: noVolumes{}, Pools: []driver.Pool{{Name: "default"}}},
		Health:     driver.Health{Pools: new(pool.Set), Figures: func() []pool.Figures { return nil }},
	})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := csi.NewIdentityClient(conn).Probe(t.Context(), &csi.ProbeRequest{}); err != nil {
		t.Fatal(err)
	}
	req := &csi.CreateVolumeRequest{
		Name: "pvc-1", Secrets: map[string]string{"password": "hunter2"}, Parameters: map[string]string{"fsType": "ext4"},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
			AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		}},
	}
	if _, err := csi.NewControllerClient(conn).CreateVolume(t.Context(), req); err == nil {
		t.Fatal("it was created")
	}
	if err := errors.Join(conn.Close(), s.Stop(t.Context()), <-served); err != nil {
		t.Fatal(err)
	}
	spans := got.GetSpans()
	if len(spans) != 1 {
		t.Fatalf("%d spans: %+v", len(spans), spans)
	}
	text := fmt.Sprintf("%+v", spans[0])
	for _, want := range []string{"CreateVolume", "pvc-1", "vhdx-csi"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if strings.Contains(text, "hunter2") {
		t.Errorf("a secret in %s", text)
	}
}

// Traces are off unless somebody asks for them.
func TestTracesAreOff(t *testing.T) {
	for _, name := range otlpVariables {
		t.Setenv(name, "")
	}
	if (&options{}).traces() {
		t.Error("without a word")
	}
	if !(&options{otlpEndpoint: "http://c:4317"}).traces() {
		t.Error("not with the flag")
	}
	t.Setenv(otlpVariables[0], "http://c:4317")
	if !(&options{}).traces() {
		t.Error("not with the variable")
	}
}
