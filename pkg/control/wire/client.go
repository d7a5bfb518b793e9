package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Nodes is what a controller needs of its pools to find a node. A *pool.Set is it.
type Nodes interface {
	PoolOf(volumeID string) (string, error)
	NodeIn(ctx context.Context, pool, id string) (pool.Node, error)
}

// ClientOptions says who asks.
type ClientOptions struct {
	Identity *Identity
	Nodes    Nodes
	// CallTimeout bounds a call whose caller would wait longer. 0: 2 minutes.
	CallTimeout time.Duration
}

const (
	callTimeout = 2 * time.Minute
	dialTimeout = 3 * time.Second // of one address
	idleTimeout = 5 * time.Minute
)

// A node that is gone without a word is noticed while a call waits for it.
var clientAlive = keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}

// Client is a controller's side. It keeps connections, each made for what one
// pool's record of a node says, and used for that pool's volumes alone.
type Client struct {
	o ClientOptions

	mu    sync.Mutex
	links map[inside]*link
}

// inside is a node as one pool knows it.
type inside struct{ pool, node string }

// NewClient makes a client. Nothing is dialled yet.
func NewClient(o ClientOptions) *Client {
	if o.CallTimeout == 0 {
		o.CallTimeout = callTimeout
	}
	return &Client{o: o, links: map[inside]*link{}}
}

// Close ends all connections, and with them what waits for an answer.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for k, l := range c.links {
		errs = append(errs, l.conn.Close())
		delete(c.links, k)
	}
	return errors.Join(errs...)
}

// On is the holder on a node, which need not be there.
func (c *Client) On(node string) control.Holder { return remote{c, node} }

// call asks a node about a volume. The node's record is read anew each time: it
// may have moved, or have another certificate. If that happens at this very
// moment, the node is asked once more (I-CTL-4).
func (c *Client) call(ctx context.Context, node, name string, q request, a message) error {
	f, err := encode(q)
	if err != nil {
		return fmt.Errorf("ask node %s to %s: %w", node, strings.ToLower(name), err)
	}
	in, err := c.o.Nodes.PoolOf(q.volume())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.CallTimeout)
	defer cancel()
	n, err := c.find(ctx, in, node)
	for err == nil {
		err = c.ask(ctx, in, n, name, f, a)
		if !errors.Is(err, control.ErrUnreachable) || ctx.Err() != nil {
			return err
		}
		now, ferr := c.find(ctx, in, node)
		if ferr != nil || madeOf(now) == madeOf(n) {
			return err
		}
		n, err = now, nil
	}
	return err
}

// find reads a node's record.
func (c *Client) find(ctx context.Context, in, node string) (pool.Node, error) {
	n, err := c.o.Nodes.NodeIn(ctx, in, node)
	if err != nil {
		return n, fmt.Errorf("node %s: %w: %w", node, control.ErrUnreachable, err)
	}
	if len(n.Endpoints) == 0 || len(n.Certificates) == 0 {
		return n, unreachable(node, "no address", "its record in pool "+in+" says not where to ask it; its plugin may be too old for that")
	}
	return n, nil
}

// ask asks a node where this record of it says.
func (c *Client) ask(ctx context.Context, in string, n pool.Node, name string, f *frame, a message) error {
	node, where := n.ID, strings.Join(n.Endpoints, ", ")
	l, err := c.enter(in, n)
	if err != nil {
		return fmt.Errorf("node %s: %w: %w", node, control.ErrUnreachable, err)
	}
	defer c.leave(l)
	var reply frame
	var trailer metadata.MD
	err = l.conn.Invoke(ctx, "/"+service+"/"+name, f, &reply, grpc.Trailer(&trailer))
	if err != nil {
		return translate(node, where, err, trailer)
	}
	if err := decode(&reply, a); err != nil {
		return unreachable(node, where, "its answer: "+err.Error())
	}
	return nil
}

// link is a connection, or the attempt at one.
type link struct {
	conn  *grpc.ClientConn
	made  string // of what in the record
	users int
	old   bool // nobody gets it any more
	used  time.Time
}

// madeOf is what of a record a connection depends on.
func madeOf(n pool.Node) string { return fmt.Sprint(n.Endpoints, n.Certificates) }

// enter gives a connection that is made for what the record says, and is not
// known to fail: a node that is back is asked at once.
func (c *Client) enter(in string, n pool.Node) (*link, error) {
	made := madeOf(n)
	k := inside{in, n.ID}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep()
	l := c.links[k]
	if l != nil && (l.made != made || l.conn.GetState() == connectivity.TransientFailure) {
		c.retire(k, l)
		l = nil
	}
	if l == nil {
		conn, err := c.dial(n)
		if err != nil {
			return nil, err
		}
		l = &link{conn: conn, made: made}
		c.links[k] = l
	}
	l.users++
	return l, nil
}

func (c *Client) leave(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.users--
	l.used = time.Now()
	if l.old && l.users == 0 {
		l.conn.Close()
	}
}

// retire takes a link out of use. Calls that have it may end.
func (c *Client) retire(k inside, l *link) {
	delete(c.links, k)
	l.old = true
	if l.users == 0 {
		l.conn.Close()
	}
}

// sweep ends the connections to nodes that nobody asks any more.
func (c *Client) sweep() {
	for k, l := range c.links {
		if l.users == 0 && time.Since(l.used) > idleTimeout {
			c.retire(k, l)
		}
	}
}

// dial makes a connection to what one record of a node says, and to nobody else.
func (c *Client) dial(n pool.Node) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///node",
		grpc.WithTransportCredentials(clientTLS(c.o.Identity, n.Certificates)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dialFirst(ctx, n.Endpoints) }),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(clientAlive), grpc.WithIdleTimeout(idleTimeout), grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
}

// dialFirst connects to the first address that answers.
func dialFirst(ctx context.Context, addresses []string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	var errs []error
	for _, a := range addresses {
		conn, err := d.DialContext(ctx, "tcp", a)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
