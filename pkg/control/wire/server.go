package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
)

// ServerOptions says what a node serves and to whom.
type ServerOptions struct {
	Identity *Identity
	Pools    Controllers
	Holder   control.Holder
	// Status makes what is sent of an error of Holder: the driver's one table.
	Status func(error) error
	// Refused is told of each peer that was turned away, and Failed of a call
	// that panicked. They must not block.
	Refused func(from net.Addr, err error)
	Failed  func(err error)
	// WorkTimeout is when work is told to give up that outlives its caller. 0: 10 minutes.
	WorkTimeout time.Duration
}

const (
	workTimeout      = 10 * time.Minute
	handshakeTimeout = 10 * time.Second
	maxCalls         = 64 // on one connection
	maxHeader        = 8 << 10
)

// A connection is made anew every hour, long before a certificate ends that it
// was made with. What a peer does to keep it alive is bounded.
var (
	serverAlive = keepalive.ServerParameters{
		MaxConnectionIdle: 10 * time.Minute, MaxConnectionAge: time.Hour, MaxConnectionAgeGrace: workTimeout,
		Time: time.Minute, Timeout: 20 * time.Second,
	}
	serverPolicy = keepalive.EnforcementPolicy{MinTime: clientAlive.Time / 2}
)

// answered is the trailer of an answer that a Holder gave.
const (
	answered     = "vhdx-answer"
	answerPlain  = "holder"
	answerClosed = "not-held"
	answerThawed = "frozen-no-more"
)

// Server is a node's side.
type Server struct {
	o     ServerOptions
	trust *trust
	grpc  *grpc.Server
}

// NewServer makes a server. Nothing is served yet.
func NewServer(o ServerOptions) *Server {
	if o.WorkTimeout == 0 {
		o.WorkTimeout = workTimeout
	}
	s := &Server{o: o, trust: &trust{pools: o.Pools, now: o.Identity.now, known: map[inPool]time.Time{}, looks: map[string]chan struct{}{}}}
	s.grpc = grpc.NewServer(
		grpc.Creds(handshakes{TransportCredentials: credentials.NewTLS(s.tls()), refused: o.Refused}),
		grpc.ForceServerCodec(codec{}),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(maxCalls), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(serverAlive), grpc.KeepaliveEnforcementPolicy(serverPolicy),
	)
	s.grpc.RegisterService(&description, s)
	return s
}

// Serve answers on l until Stop, and closes it.
func (s *Server) Serve(l net.Listener) error {
	err := s.grpc.Serve(newBounded(l, maxConnections))
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Stop takes no more calls and waits for those under way, until ctx ends.
func (s *Server) Stop(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.grpc.GracefulStop()
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	s.grpc.Stop()
	return fmt.Errorf("stop the service for controllers: calls are still under way: %w", ctx.Err())
}

func (s *Server) tls() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert, // which, VerifyConnection decides
		SessionTicketsDisabled: true,                     // each connection proves anew who it is
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.o.Identity.current(), nil },
		VerifyConnection: func(c tls.ConnectionState) error {
			cert, err := peerOf(c, s.o.Identity.now())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
			defer cancel()
			return s.trust.connection(ctx, fingerprint(cert))
		},
	}
}

// handshakes tells of those that failed.
type handshakes struct {
	credentials.TransportCredentials
	refused func(net.Addr, error)
}

func (h handshakes) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ServerHandshake(c)
	if err != nil {
		h.refused(c.RemoteAddr(), err)
	}
	return conn, info, err
}

func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{TransportCredentials: h.TransportCredentials.Clone(), refused: h.refused}
}

// method makes a call of the service out of what it does.
func method[Q any, P interface {
	*Q
	request
}](name string, do func(context.Context, control.Holder, P) (message, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		s, q := srv.(*Server), P(new(Q)) //nolint:forcetypeassert // it was registered as one
		var f frame
		if err := dec(&f); err != nil {
			return nil, err
		}
		if err := decode(&f, q); err != nil {
			return nil, status.Error(codeOfMessage(err), err.Error())
		}
		if err := s.permit(ctx, q); err != nil {
			return nil, err
		}
		return s.answer(ctx, func(ctx context.Context) (message, error) { return do(ctx, s.o.Holder, q) })
	}}
}

func codeOfMessage(err error) codes.Code {
	if errors.Is(err, errNewer) {
		return codes.Unimplemented
	}
	return codes.InvalidArgument
}

// permit refuses a peer that has no business with the volume (I-CTL-1).
func (s *Server) permit(ctx context.Context, q request) error {
	cert, err := s.peer(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	err = s.trust.volume(ctx, q.volume(), fingerprint(cert))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errStranger) || errors.Is(err, errEnded):
		if p, ok := peer.FromContext(ctx); ok {
			s.o.Refused(p.Addr, fmt.Errorf("volume %.128q: %w", q.volume(), err))
		}
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return s.status(ctx, err)
}

func (s *Server) peer(ctx context.Context) (*x509.Certificate, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errNobody
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, errNobody
	}
	return peerOf(info.State, s.o.Identity.now())
}

// answer does the work, whatever becomes of the caller (I-CTL-5).
func (s *Server) answer(ctx context.Context, do func(context.Context) (message, error)) (any, error) {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.WorkTimeout)
	defer cancel()
	m, err := s.safely(func() (message, error) { return do(work) })
	if err != nil {
		return nil, s.status(ctx, err)
	}
	f, err := encode(m)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return f, nil
}

var errPanic = errors.New("internal error, see the node plugin's log")

// safely keeps a fault in one call from ending the process that serves all volumes.
func (s *Server) safely(do func() (message, error)) (m message, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.o.Failed(fmt.Errorf("a call panicked: %v\n%s", r, debug.Stack()))
			m, err = nil, errPanic
		}
	}()
	return do()
}

// status is what is sent of an error of the pool or the holder.
func (s *Server) status(ctx context.Context, err error) error {
	kind := answerPlain
	switch {
	case errors.Is(err, control.ErrNotHeld):
		kind = answerClosed
	case errors.Is(err, control.ErrFrozenNoMore):
		kind = answerThawed
	}
	grpc.SetTrailer(ctx, metadata.Pairs(answered, kind)) //nolint:errcheck // then the caller takes it for no answer, which is safe
	st := status.Convert(s.o.Status(err))
	return status.Error(st.Code(), shorten(st.Message()))
}
