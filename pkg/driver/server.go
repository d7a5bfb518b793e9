package driver

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"k8s.io/klog/v2"
)

// Server serves the services of a [Config] on one socket.
type Server struct {
	grpc   *grpc.Server
	health *health.Server
	work   *inflight
}

// New makes a server. Everything below it is ready to be called.
func New(ctx context.Context, c Config) (*Server, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("set up the CSI services: %w", err)
	}
	log := klog.FromContext(ctx)
	if c.Observe == nil {
		c.Observe = func(context.Context, Call) {}
	}
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			return intercept(klog.NewContext(ctx, log), req, info, h, c.Observe)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error { //nolint:contextcheck // a stream brings its context along
			return interceptStream(log, srv, ss, info, h, c.Observe)
		}),
	}
	if c.Stats != nil {
		options = append(options, grpc.StatsHandler(c.Stats))
	}
	s := &Server{
		grpc:   grpc.NewServer(options...),
		health: health.NewServer(),
		work:   newInflight(cmp.Or(c.WorkTimeout, defaultWorkTimeout)),
	}
	s.register(c)
	return s, nil
}

func (s *Server) register(c Config) {
	h := newHealthView(c.Health)
	csi.RegisterIdentityServer(s.grpc, &identity{version: c.Version})
	if c.Controller != nil {
		ctl := &controller{Controller: *c.Controller, work: s.work, reads: make(reads, maxReads), health: h}
		csi.RegisterControllerServer(s.grpc, ctl)
		csi.RegisterGroupControllerServer(s.grpc, &groupController{controller: ctl, groups: c.Controller.Groups})
		csi.RegisterSnapshotMetadataServer(s.grpc, &metadataServer{maps: c.Controller.Maps, places: make(chan struct{}, maxStreams)})
	}
	if c.Node != nil {
		csi.RegisterNodeServer(s.grpc, &nodeServer{NodeService: *c.Node, work: s.work, health: h})
	}
	healthpb.RegisterHealthServer(s.grpc, s.health)
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, healthpb.HealthCheckResponse_SERVING)
	}
}

// Serve answers calls on l until Stop. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil {
		return fmt.Errorf("serve CSI on %s: %w", l.Addr(), err)
	}
	return nil
}

// Stop takes no new calls, and waits for those under way and for the work that
// outlived its callers. When ctx ends first it hangs up and says so.
func (s *Server) Stop(ctx context.Context) error {
	s.health.Shutdown()
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(done)
	}()
	err := s.work.drain(ctx)
	// What is left now reads, or watches the health and would never end.
	select {
	case <-done:
	case <-ctx.Done():
	case <-time.After(readGrace):
	}
	s.grpc.Stop()
	<-done
	return err
}

// readGrace is how long calls that change nothing may go on after the others.
const readGrace = time.Second
