package main

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/metrics"
)

func unobserved() *observer { return &observer{metrics: metrics.New(metrics.Process{})} }

// waits is a log sink that tells when the plugin says that it waits.
type waits struct{ said chan struct{} }

func (waits) Init(klog.RuntimeInfo)            {}
func (waits) Enabled(int) bool                 { return true }
func (waits) Error(error, string, ...any)      {}
func (w waits) WithValues(...any) klog.LogSink { return w }
func (w waits) WithName(string) klog.LogSink   { return w }
func (w waits) Info(int, string, ...any)       { w.said <- struct{}{} }

// TestWaitForKeeper: a plugin that starts before its keeper waits for it.
func TestWaitForKeeper(t *testing.T) {
	o := &options{stateDir: t.TempDir(), keeperSocket: filepath.Join(t.TempDir(), "k")}
	w := waits{make(chan struct{}, 1)}
	ctx := klog.NewContext(t.Context(), klog.New(w))
	got := make(chan error, 1)
	go func() {
		c, err := o.dialKeeper(ctx, unobserved())
		if err == nil {
			err = c.Close()
		}
		got <- err
	}()
	<-w.said
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- keeper.Serve(t.Context(), keeper.Options{Socket: o.keeperSocket, Stop: stop}) }()
	if err := <-got; err != nil {
		t.Errorf("with a keeper that came later: %v", err)
	}
	stop <- struct{}{}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestStopWithoutKeeper: to wait for a keeper is no reason not to end.
func TestStopWithoutKeeper(t *testing.T) {
	o := &options{stateDir: t.TempDir(), keeperSocket: filepath.Join(t.TempDir(), "k")}
	w := waits{make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), klog.New(w)))
	got := make(chan error, 1)
	go func() {
		_, err := o.dialKeeper(ctx, unobserved())
		got <- err
	}()
	<-w.said
	cancel()
	if err := <-got; !errors.Is(err, errEnded) {
		t.Errorf("got %v, want errEnded", err)
	}
}
