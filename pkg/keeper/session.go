package keeper

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// session is one client. Only its own goroutine ever waits for it.
type session struct {
	*server
	conn  *net.UnixConn
	owner string // guarded by server.mu

	mu      sync.Mutex // held while a request is carried out, before server.mu; guards revoked
	revoked bool       // another client of the same owner has come
}

// serve speaks with the client until either hangs up.
func (n *session) serve() {
	defer n.leave()
	if err := n.greet(); err != nil {
		return
	}
	for {
		b, files, err := receive(n.conn, maxMessage+1)
		if err != nil {
			return
		}
		m, err := decodeMessage(b)
		if err == nil && m.files != len(files) {
			err = errMessage
		}
		if err != nil {
			// Whoever sent this does not speak the protocol it agreed to.
			closeAll(files)
			return
		}
		if err := n.answer(m, files); err != nil {
			return
		}
	}
}

func (n *session) leave() {
	_ = n.conn.Close()
	n.server.mu.Lock()
	defer n.server.mu.Unlock()
	delete(n.sessions, n)
	if n.owners[n.owner] == n {
		delete(n.owners, n.owner)
	}
}

// greet decides whether the client is served, and tells it.
func (n *session) greet() error {
	_ = n.conn.SetDeadline(time.Now().Add(helloPatience))
	cred, err := peer(n.conn)
	if err != nil {
		return err
	}
	v := verdictOK
	if cred.Uid != 0 {
		v = verdictNotRoot
	} else {
		b, files, err := receive(n.conn, maxHello+1)
		if err != nil {
			return err
		}
		closeAll(files)
		it, err := decodeHello(b)
		if err != nil || !it.common(n.hello(verdictOK)) {
			v = verdictVersion
		}
	}
	if err := send(n.conn, n.hello(v).encode(), nil); err != nil {
		return err
	}
	if v != verdictOK {
		return io.EOF
	}
	return n.conn.SetDeadline(time.Time{})
}

var errRevoked = errors.New("another client of the same owner has come")

// answer does what a request asks and says what came of it.
func (n *session) answer(m message, files []int) error {
	n.mu.Lock()
	if n.revoked {
		n.mu.Unlock()
		closeAll(files)
		return errRevoked
	}
	a, give, r := n.do(m, files)
	n.mu.Unlock()
	if r != nil && r.code == codeEnding {
		closeAll(files)
		return io.EOF
	}
	if r != nil {
		a = message{code: r.code, generation: r.generation, body: []byte(r.text[:min(len(r.text), MaxMeta)])}
	}
	a.op, a.files = m.op, len(give)
	_ = n.conn.SetWriteDeadline(time.Now().Add(sendPatience))
	err := send(n.conn, a.encode(), give)
	// These are copies, or were refused: another filesystem's file, whose
	// close could wait for ever, then holds up its own client and no other.
	closeAll(give)
	if m.op != opPut || r != nil {
		closeAll(files)
	}
	if m.op == opStop && r == nil {
		n.once.Do(func() { close(n.stopped) })
	}
	return err
}

func (n *session) do(m message, files []int) (a message, give []int, r *refusal) {
	switch m.op {
	case opPut:
		return a, nil, n.store.put(m.id, m.generation, m.body, files)
	case opGet:
		h, give, r := n.store.get(m.id)
		if r != nil {
			return a, nil, r
		}
		return message{id: m.id, generation: h.generation, body: h.meta}, give, nil
	case opNext:
		id, h := n.store.next(m.id)
		if h == nil {
			return a, nil, refuse(codeNotFound, "")
		}
		return message{id: id, generation: h.generation, body: h.meta}, nil, nil
	case opDrop:
		return a, nil, n.store.drop(m.id, m.generation)
	case opStatus:
		b, err := json.Marshal(n.status())
		if err != nil || len(b) > MaxMeta {
			return a, nil, refuse(codeInvalid, "status of %d bytes: %v", len(b), err)
		}
		return message{body: b}, nil, nil
	case opStop:
		return a, nil, n.store.end(m.generation == 1)
	case opOwn:
		return a, nil, n.own(m.id)
	}
	return a, nil, refuse(codeUnknown, "operation %d is of a newer protocol; the keeper (%s) speaks %s", m.op, n.o.Build, n.hello(verdictOK).versions())
}

// own makes this the owner's client and ends an earlier one: what that sent
// and is not done yet never will be.
func (n *session) own(name string) *refusal {
	if name == "" {
		return refuse(codeInvalid, "an owner needs a name")
	}
	n.server.mu.Lock()
	old := n.owners[name]
	if n.owner != "" {
		n.server.mu.Unlock()
		return refuse(codeInvalid, "this client has an owner")
	}
	n.owner = name
	n.owners[name] = n
	n.server.mu.Unlock()
	if old != nil {
		old.mu.Lock()
		old.revoked = true
		old.mu.Unlock()
		n.wg.Go(old.dismiss)
	}
	return nil
}

// dismiss tells the client why it is not served any more, if it still reads.
func (n *session) dismiss() {
	_ = n.conn.SetWriteDeadline(time.Now().Add(sendPatience))
	_ = send(n.conn, message{op: opOwn, code: codeRevoked}.encode(), nil)
	_ = n.conn.Close()
}

func (s *server) status() Status {
	s.mu.Lock()
	clients := len(s.sessions)
	s.mu.Unlock()
	st := s.store
	st.mu.Lock()
	defer st.mu.Unlock()
	return Status{
		PID: os.Getpid(), Build: s.hello(verdictOK).name(), Started: s.started, Exposed: s.exposed,
		Items: len(st.items), MaxItems: st.maxItems, Files: st.files, MaxFiles: st.maxFiles,
		Bytes: st.bytes, MaxBytes: st.maxBytes, Clients: clients, Stored: s.shelf.completeLocked(),
	}
}
