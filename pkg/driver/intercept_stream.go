package driver

import (
	"context"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// interceptStream is intercept for calls that are answered with a stream.
func interceptStream(log klog.Logger, srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler, observe func(context.Context, Call)) error {
	call := Call{Method: path.Base(info.FullMethod)}
	log = log.WithValues("method", call.Method)
	ctx := klog.NewContext(ss.Context(), log)
	s := &boundedStream{ServerStream: ss, ctx: ctx, log: log}

	start := time.Now()
	err := guard(ctx, func() error { return h(srv, s) })
	if call.Err = err; err != nil {
		err = toStatus(call.Method, err)
	}
	call.Took, call.Code = time.Since(start), status.Code(err).String()
	logCall(s.log, call.Method, call.Took, err)
	observe(ctx, call)
	return err
}

// boundedStream looks at each request that its handler receives (I-DRV-5).
type boundedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // it is what a stream has its context in
	log klog.Logger
}

func (s *boundedStream) Context() context.Context { return s.ctx }

func (s *boundedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if of := snapshotOf(m); of != "" {
		s.log = s.log.WithValues("snapshot", of)
	}
	s.log.V(vRequests).Info("Request", "request", loggable{m})
	return checkLimits(m)
}

// snapshotOf names the snapshot a request is about, for the log.
func snapshotOf(req any) string {
	switch r := req.(type) {
	case interface{ GetTargetSnapshotId() string }:
		return r.GetTargetSnapshotId()
	case interface{ GetSnapshotId() string }:
		return r.GetSnapshotId()
	}
	return ""
}
