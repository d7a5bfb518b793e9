package pool

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"strings"
	"time"
)

// A pool says whom to trust about its volumes: whoever can write it owns them
// already. A node's record names its certificates and where it listens; a
// controller's certificate has a file of its own, found by its fingerprint, so
// that a node looks for the one it is shown and reads no other.

// Bounds of what a record may say about a peer.
const (
	maxEndpoints    = 8
	maxCertificates = 8
	maxPeerName     = 256
)

// controllerMargin is how long after its certificate has ended a controller's
// record stays: clocks differ.
const controllerMargin = time.Hour

// Certificate is a certificate that a pool trusts.
type Certificate struct {
	SHA256 string    `json:"sha256"` // of its DER form, in 64 lower-case hex digits
	Until  time.Time `json:"until"`
}

// Controller is a controller as a pool knows it: whoever has the key of this
// certificate.
type Controller struct {
	Certificate
	Name  string // the host it runs on, for people
	Since time.Time
}

// controllerRecord is controllers/<first half of the fingerprint>.json.
type controllerRecord struct {
	SHA256 string    `json:"sha256"`
	Until  time.Time `json:"until"`
	Name   string    `json:"name,omitempty"`
	Since  time.Time `json:"since"`
}

// parseFingerprint takes the one spelling of a SHA-256. The hash is its first half.
func parseFingerprint(s string) (h hash, ok bool) {
	var all [2 * hashLen]byte
	ok = len(s) == hex.EncodedLen(len(all)) && decodeHex(all[:], s)
	return hash(all[:hashLen]), ok
}

func controllerPath(h hash) string { return path.Join(dirControllers, h.String()+".json") }

// fault says what is wrong with where a node is asked and by whose word, "" for nothing.
func (n Node) fault() string {
	if len(n.Endpoints) > maxEndpoints || len(n.Certificates) > maxCertificates {
		return fmt.Sprintf("%d endpoints and %d certificates, at most %d and %d", len(n.Endpoints), len(n.Certificates), maxEndpoints, maxCertificates)
	}
	for _, e := range n.Endpoints {
		if !validEndpoint(e) {
			return fmt.Sprintf("endpoint %.64q is no address and port that a node can have", e)
		}
	}
	for _, c := range n.Certificates {
		if _, ok := parseFingerprint(c.SHA256); !ok {
			return fmt.Sprintf("certificate %.80q is no SHA-256", c.SHA256)
		}
	}
	return ""
}

// validEndpoint takes numeric addresses only: a name would be looked up with
// whatever resolver the reader has.
func validEndpoint(s string) bool {
	a, err := netip.ParseAddrPort(s)
	return err == nil && a.String() == s && a.Port() != 0 && !a.Addr().IsUnspecified() && !a.Addr().IsMulticast() && a.Addr().Zone() == ""
}

// RegisterController makes a controller's certificate known in every pool, those
// that are away when they come back. It adds: an earlier certificate stays known
// until it ends or is withdrawn. Where it is known already nothing is written, so
// it may be called now and then, which heals a pool that has lost the record.
func (s *Set) RegisterController(_ context.Context, c Controller) error {
	s.mu.Lock()
	s.controller = &c
	there := s.Pools()
	s.mu.Unlock() // a share that hangs holds up nobody else
	var errs []error
	for _, p := range there {
		errs = append(errs, p.notWritable(p.registerController(c)))
	}
	return errors.Join(errs...)
}

// WithdrawController takes a certificate back, in every pool that is open.
func (s *Set) WithdrawController(_ context.Context, sha256 string) error {
	h, ok := parseFingerprint(sha256)
	if !ok {
		return fmt.Errorf("withdraw controller: %w: %.80q is no SHA-256", ErrInvalid, sha256)
	}
	s.mu.Lock()
	if s.controller != nil && s.controller.SHA256 == sha256 {
		s.controller = nil
	}
	there := s.Pools()
	s.mu.Unlock()
	var errs []error
	for _, p := range there {
		errs = append(errs, p.notWritable(p.tree.Remove(controllerPath(h))))
	}
	return errors.Join(errs...)
}

// PoolOf is the name of a volume's pool, which is served here: ErrNotFound, ErrAway.
func (s *Set) PoolOf(volumeID string) (string, error) {
	_, v, err := s.of(volumeID)
	return v.pool, err
}

// PoolNames are the names of the pools that are open now.
func (s *Set) PoolNames() []string {
	var names []string
	for _, p := range s.Pools() {
		names = append(names, p.name)
	}
	return names
}

// NodeIn returns what one pool says of a node: only that pool's word counts for
// its volumes. ErrNoNode, ErrAway.
func (s *Set) NodeIn(_ context.Context, pool, id string) (Node, error) {
	p, err := s.Pool(pool)
	if err != nil {
		return Node{}, err
	}
	return p.node(id)
}

// ControllerIn returns the controller of a certificate, if the pool knows it.
func (s *Set) ControllerIn(_ context.Context, pool, sha256 string) (c Controller, known bool, err error) {
	p, err := s.Pool(pool)
	if err != nil {
		return Controller{}, false, err
	}
	c, _, err = p.readController(sha256)
	if errors.Is(err, fs.ErrNotExist) {
		return Controller{}, false, nil
	}
	return c, err == nil, err
}

func (p *Pool) registerController(c Controller) error {
	h, ok := parseFingerprint(c.SHA256)
	if !ok || len(c.Name) > maxPeerName {
		return fmt.Errorf("controller %.64q: %w: certificate %.80q", c.Name, ErrInvalid, c.SHA256)
	}
	old, extra, err := p.readController(c.SHA256)
	if err == nil && old.Until.Equal(c.Until.Truncate(time.Second)) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrDamaged) {
		return err
	}
	b, err := encodeObject(&controllerRecord{
		SHA256: c.SHA256, Until: c.Until.UTC().Truncate(time.Second), Name: strings.ToValidUTF8(c.Name, "?"), Since: c.Since.UTC().Truncate(time.Second),
	}, extra)
	if err != nil {
		return err
	}
	return p.tree.Replace(controllerPath(h), b)
}

func (p *Pool) readController(sha256 string) (Controller, extras, error) {
	h, ok := parseFingerprint(sha256)
	if !ok {
		return Controller{}, nil, fmt.Errorf("controller: %w: %.80q is no SHA-256", ErrInvalid, sha256)
	}
	b, err := p.readFile(dirControllers, path.Base(controllerPath(h)), maxFile)
	if err != nil {
		return Controller{}, nil, err
	}
	c, extra, err := decodeController(b, h)
	if err == nil && c.SHA256 != sha256 {
		err = fmt.Errorf("%w: it is of certificate %s", ErrDamaged, c.SHA256)
	}
	if err != nil {
		return Controller{}, nil, fmt.Errorf("pool %s: controller record %s: %w", p.name, controllerPath(h), err)
	}
	return c, extra, nil
}

func decodeController(b []byte, h hash) (Controller, extras, error) {
	var r controllerRecord
	extra, err := decodeObject(b, &r)
	if err != nil {
		return Controller{}, nil, err
	}
	if got, ok := parseFingerprint(r.SHA256); !ok || got != h {
		return Controller{}, nil, fmt.Errorf("%w: certificate %.80q does not belong under %s", ErrDamaged, r.SHA256, h)
	}
	if len(r.Name) > maxPeerName {
		return Controller{}, nil, fmt.Errorf("%w: name of %d bytes", ErrDamaged, len(r.Name))
	}
	return Controller{Certificate: Certificate{SHA256: r.SHA256, Until: r.Until}, Name: r.Name, Since: r.Since}, extra, nil
}

// collectControllers removes the records of controllers whose certificate has
// ended. What cannot be read stays: Problems names it.
func (p *Pool) collectControllers(now time.Time) (int, error) {
	d, err := p.tree.Dir(dirControllers)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Names()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, name := range names {
		h, ok := controllerFile(name)
		if !ok {
			continue
		}
		b, err := d.Read(name, maxFile)
		if err != nil {
			continue
		}
		c, _, err := decodeController(b, h)
		if err != nil || now.Before(c.Until.Add(controllerMargin)) {
			continue
		}
		if err := p.tree.RemoveLazily(controllerPath(h)); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// controllerFile reads the name of a controller's record.
func controllerFile(name string) (hash, bool) {
	base, ok := strings.CutSuffix(name, ".json")
	h, valid := parseHash(base)
	return h, ok && valid
}

// controllers looks at each controller's record.
func (s *survey) controllers() {
	d, err := s.p.tree.Dir(dirControllers)
	if err != nil {
		return // reported by the look at the top
	}
	defer d.Close()
	for _, e := range s.entries(dirControllers) {
		full := path.Join(dirControllers, e.Name())
		h, ok := controllerFile(e.Name())
		if !ok || !e.Type().IsRegular() {
			s.add(full, "a foreign file: no controller's record has that name")
			continue
		}
		b, err := d.Read(e.Name(), maxFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err == nil {
			_, _, err = decodeController(b, h)
		}
		if err != nil {
			s.add(full, "%v; if it is not a controller's, remove it", err)
		}
	}
}
