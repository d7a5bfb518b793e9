package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// entry is what a client has put, or got, with descriptors of its own.
type entry struct {
	id         string
	generation uint64
	meta       []byte
	files      []int
}

func (e *entry) message(o op) message {
	return message{op: o, id: e.id, generation: e.generation, body: e.meta, files: len(e.files)}
}

// answer is a message with the descriptors that came beside it.
type answer struct {
	message
	files []int
}

// link is one connection to one keeper. A goroutine reads it, so that its end
// is known at once. One call at a time.
type link struct {
	conn    *net.UnixConn
	answers chan answer
	dead    chan struct{} // closed when the reader has ended
	why     error         // set before dead is closed
	once    sync.Once
}

// connect dials and greets.
func (d Dialer) connect(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	addr, done, err := address(d.Socket)
	if err != nil {
		return nil, fmt.Errorf("connect to the keeper: %w: %w", ErrUnavailable, err)
	}
	defer done()
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr.Name)
	if err != nil {
		return nil, fmt.Errorf("connect to the keeper at %s: %w: %w", d.Socket, ErrUnavailable, err)
	}
	conn := c.(*net.UnixConn)
	end, _ := ctx.Deadline()
	if err := d.greet(conn, end); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to the keeper at %s: %w", d.Socket, err)
	}
	l := &link{conn: conn, answers: make(chan answer, 1), dead: make(chan struct{})}
	go l.read()
	if d.Owner != "" {
		if _, err := l.call(message{op: opOwn, id: d.Owner}, nil, end); err != nil {
			l.close()
			<-l.dead
			return nil, fmt.Errorf("connect to the keeper at %s as %s: %w", d.Socket, d.Owner, err)
		}
	}
	return l, nil
}

func (d Dialer) greet(conn *net.UnixConn, end time.Time) error {
	if err := conn.SetDeadline(end); err != nil {
		return err
	}
	me := hello{low: protocolLow, high: protocolHigh, build: d.Build}
	// A keeper that refuses answers and hangs up: what counts is the answer.
	sendErr := send(conn, me.encode(), nil)
	b, files, err := receive(conn, maxHello+1)
	if errors.Is(err, unix.ECONNRESET) { // it hung up without reading; its answer comes second
		b, files, err = receive(conn, maxHello+1)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(sendErr, err))
	}
	closeAll(files)
	it, err := decodeHello(b)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrVersion, err)
	case it.verdict == verdictNotRoot:
		return fmt.Errorf("%w: it serves root only", ErrRefused)
	case it.verdict == verdictFull:
		return fmt.Errorf("%w: it has too many clients", ErrFull)
	case it.verdict == verdictVersion || !it.common(me):
		return fmt.Errorf("%w: the keeper (%s) speaks version %s, this program (%s) version %s: empty the node of volumes and replace the keeper, or run the matching program",
			ErrVersion, it.name(), it.versions(), me.name(), me.versions())
	case it.verdict != verdictOK:
		return fmt.Errorf("%w: verdict %d", ErrRefused, it.verdict)
	}
	return conn.SetDeadline(time.Time{})
}

// read hands out answers until the connection ends.
func (l *link) read() {
	defer close(l.dead)
	for {
		b, files, err := receive(l.conn, maxMessage+1)
		var m message
		if err == nil {
			m, err = decodeMessage(b)
			switch {
			case err == nil && m.files != len(files):
				err = fmt.Errorf("%w: %d descriptors announced, %d arrived", errMessage, m.files, len(files))
			case err == nil && m.op == opOwn && m.code == codeRevoked:
				err = ErrRevoked
			}
		}
		if err != nil {
			closeAll(files)
			l.why = err
			break
		}
		select {
		case l.answers <- answer{message: m, files: files}:
			continue
		default:
		}
		closeAll(files)
		l.why = fmt.Errorf("%w: an answer to no request", errMessage)
		break
	}
	_ = l.conn.Close()
	select {
	case a := <-l.answers: // nobody waits for it any more
		closeAll(a.files)
	default:
	}
}

func (l *link) close() { l.once.Do(func() { _ = l.conn.Close() }) }

// gone is the error of a call that got no answer.
func (l *link) gone() error { return fmt.Errorf("%w: %w", ErrUnavailable, l.why) }

// call sends a request and waits for its answer. An error of the connection
// ends the link.
func (l *link) call(m message, files []int, end time.Time) (answer, error) {
	_ = l.conn.SetWriteDeadline(end) // fails on a closed connection, as send then does
	if err := send(l.conn, m.encode(), files); err != nil {
		l.close()
		<-l.dead
		return answer{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	timer := time.NewTimer(time.Until(end))
	defer timer.Stop()
	select {
	case a := <-l.answers:
		return l.judge(m, a)
	case <-timer.C:
		l.close()
		<-l.dead
		return answer{}, fmt.Errorf("%w: no answer in time", ErrUnavailable)
	case <-l.dead:
	}
	return answer{}, l.gone()
}

var sentinels = map[code]error{
	codeNotFound: ErrNotFound, codeStale: ErrStale, codeFull: ErrFull, codeInvalid: ErrInvalid,
	codeHolding: ErrHolding, codeUnknown: ErrVersion,
}

func (l *link) judge(m message, a answer) (answer, error) {
	if a.op != m.op {
		closeAll(a.files)
		l.close()
		<-l.dead
		return answer{}, fmt.Errorf("%w: operation %d answered as %d", errMessage, m.op, a.op)
	}
	if a.code == codeOK {
		return a, nil
	}
	closeAll(a.files)
	sentinel, ok := sentinels[a.code]
	if !ok {
		sentinel = fmt.Errorf("error %d of the keeper", a.code)
	}
	if len(a.body) == 0 {
		return a, sentinel
	}
	return a, fmt.Errorf("%w: %s", sentinel, a.body)
}
