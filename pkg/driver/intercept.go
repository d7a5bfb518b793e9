package driver

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// polled are the methods that are called all the time and change nothing. They
// are logged at a higher verbosity unless they fail.
var polled = map[string]bool{
	"Probe": true, "GetPluginInfo": true, "GetPluginCapabilities": true,
	"ControllerGetCapabilities": true, "NodeGetCapabilities": true, "NodeGetInfo": true,
	"ListVolumes": true, "GetCapacity": true, "ControllerGetVolume": true,
	"GroupControllerGetCapabilities": true, "GetVolumeGroupSnapshot": true,
	"ListSnapshots": true, "GetSnapshot": true,
	"ControllerGetVolumeHealth": true, "ControllerListVolumeHealth": true, "NodeGetVolumeHealth": true, "NodeGetStorageHealth": true,
	"NodeGetVolumeStats": true, "Check": true, "Watch": true, "List": true,
}

// Verbosities.
const (
	vPolled   = 4
	vRequests = 5
)

// intercept surrounds every call: limits, panics, codes, the log line,
// whoever observes.
func intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler, observe func(context.Context, Call)) (any, error) {
	call := Call{Method: path.Base(info.FullMethod), Volume: volumeOf(req)}
	log := klog.FromContext(ctx).WithValues("method", call.Method)
	if call.Volume != "" {
		log = log.WithValues("volume", call.Volume)
	}
	ctx = klog.NewContext(ctx, log)
	log.V(vRequests).Info("Request", "request", loggable{req})

	start := time.Now()
	resp, err := handle(ctx, req, h)
	if call.Err = err; err != nil {
		resp, err = nil, toStatus(call.Method, err)
	}
	call.Took, call.Code = time.Since(start), status.Code(err).String()
	logCall(log, call.Method, call.Took, err)
	observe(ctx, call)
	return resp, err
}

func handle(ctx context.Context, req any, h grpc.UnaryHandler) (resp any, err error) {
	if err := checkLimits(req); err != nil {
		return nil, err
	}
	err = guard(ctx, func() (err error) {
		resp, err = h(ctx, req)
		return err
	})
	return resp, err
}

// guard turns a panic into an error and leaves the stack in the log.
func guard(ctx context.Context, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.FromContext(ctx).Error(nil, "Panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return f()
}

// logCall writes the one line of a call.
func logCall(log klog.Logger, method string, took time.Duration, err error) {
	code := status.Code(err)
	kv := []any{"duration", took.Round(time.Microsecond), "code", code.String()}
	switch {
	case code == codes.Internal || code == codes.Unknown || code == codes.DataLoss:
		log.Error(err, "Call failed", kv...)
	case err != nil:
		log.Info("Call refused", append(kv, "reason", status.Convert(err).Message())...)
	case polled[method]:
		log.V(vPolled).Info("Call", kv...)
	default:
		log.Info("Call", kv...)
	}
}

// volumeOf names the volume a request is about, for the log.
func volumeOf(req any) string {
	switch r := req.(type) {
	case interface{ GetVolumeId() string }:
		return r.GetVolumeId()
	case interface{ GetName() string }:
		return r.GetName()
	}
	return ""
}
