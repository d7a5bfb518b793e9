package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The versions of the protocol that this build speaks.
const (
	protocolLow  = 1
	protocolHigh = 1
)

// hello is the first packet each way. Its form is the same in every version.
//
//	0   8  magic "vhdxkeep"
//	8   4  lowest version of the protocol the sender speaks
//	12  4  highest
//	16  4  verdict: 0 go on, else why not (the server's only)
//	20  ..  the sender's build, at most 64 bytes of text
type hello struct {
	low, high uint32
	verdict   verdict
	build     string
}

type verdict uint32

const (
	verdictOK verdict = iota
	verdictVersion
	verdictNotRoot
	verdictFull
)

const (
	helloMagic = "vhdxkeep"
	helloFixed = 20
	maxBuild   = 64
	maxHello   = helloFixed + maxBuild
)

var errHello = errors.New("not a hello of a keeper's protocol")

func (h hello) encode() []byte {
	b := make([]byte, helloFixed, maxHello)
	copy(b, helloMagic)
	binary.LittleEndian.PutUint32(b[8:], h.low)
	binary.LittleEndian.PutUint32(b[12:], h.high)
	binary.LittleEndian.PutUint32(b[16:], uint32(h.verdict))
	return append(b, h.build[:min(len(h.build), maxBuild)]...)
}

func decodeHello(b []byte) (hello, error) {
	if len(b) < helloFixed || len(b) > maxHello || string(b[:8]) != helloMagic {
		return hello{}, fmt.Errorf("%w: %d bytes, % x", errHello, len(b), b[:min(len(b), 8)])
	}
	h := hello{
		low: binary.LittleEndian.Uint32(b[8:]), high: binary.LittleEndian.Uint32(b[12:]),
		verdict: verdict(binary.LittleEndian.Uint32(b[16:])), build: string(b[helloFixed:]),
	}
	if h.low == 0 || h.low > h.high {
		return hello{}, fmt.Errorf("%w: versions %d to %d", errHello, h.low, h.high)
	}
	return h, nil
}

// common reports whether two ends have a version in common.
func (h hello) common(o hello) bool { return min(h.high, o.high) >= max(h.low, o.low) }

func (h hello) versions() string {
	if h.low == h.high {
		return fmt.Sprint(h.low)
	}
	return fmt.Sprintf("%d to %d", h.low, h.high)
}

// name of the build that sent it, fit to be shown.
func (h hello) name() string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == utf8.RuneError {
			return -1
		}
		return r
	}, h.build)
	if clean == "" {
		return "unknown build"
	}
	return clean
}

// message is a request or its answer.
//
//	0   2  operation; an answer repeats its request's
//	2   2  code: 0 in a request and in a good answer
//	4   2  length of the id
//	6   2  descriptors that travel beside it
//	8   4  length of the body: meta, text of an error, JSON of a status
//	12  4  zero
//	16  8  generation
//	24  .. id, then body
type message struct {
	op         op
	code       code
	generation uint64
	id         string
	body       []byte
	files      int
}

type op uint16

const (
	opPut    op = 1 + iota
	opGet       // answer: the item, with its files
	opNext      // id: a cursor; answer: the first item after it, without files
	opDrop      // generation: which
	opStatus    // answer: JSON
	opStop      // generation: 1 by force
	opOwn       // id: whose client this is
)

type code uint16

const (
	codeOK code = iota
	codeNotFound
	codeStale
	codeFull
	codeInvalid
	codeHolding
	codeUnknown // an operation of a newer version
	codeRevoked // of opOwn, unasked: another client of the owner has come
)

const (
	messageFixed = 24
	// codeEnding never travels: the keeper hangs up instead, and the client
	// looks for the next one.
	codeEnding code = 0xffff

	maxMessage = messageFixed + MaxID + MaxMeta
)

var errMessage = errors.New("not a message of the keeper's protocol")

func (m message) encode() []byte {
	b := make([]byte, messageFixed, messageFixed+len(m.id)+len(m.body))
	binary.LittleEndian.PutUint16(b, uint16(m.op))
	binary.LittleEndian.PutUint16(b[2:], uint16(m.code))
	binary.LittleEndian.PutUint16(b[4:], uint16(len(m.id)))
	binary.LittleEndian.PutUint16(b[6:], uint16(m.files))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(m.body)))
	binary.LittleEndian.PutUint64(b[16:], m.generation)
	return append(append(b, m.id...), m.body...)
}

// decodeMessage takes one packet. What it returns shares no memory with b.
func decodeMessage(b []byte) (message, error) {
	if len(b) < messageFixed || len(b) > maxMessage {
		return message{}, fmt.Errorf("%w: %d bytes", errMessage, len(b))
	}
	m := message{
		op: op(binary.LittleEndian.Uint16(b)), code: code(binary.LittleEndian.Uint16(b[2:])),
		files: int(binary.LittleEndian.Uint16(b[6:])), generation: binary.LittleEndian.Uint64(b[16:]),
	}
	id, body := int(binary.LittleEndian.Uint16(b[4:])), binary.LittleEndian.Uint32(b[8:])
	switch {
	case id > MaxID || body > MaxMeta || m.files > MaxFiles:
		return message{}, fmt.Errorf("%w: id of %d, body of %d, %d files", errMessage, id, body, m.files)
	case len(b) != messageFixed+id+int(body):
		return message{}, fmt.Errorf("%w: %d bytes, id of %d and body of %d", errMessage, len(b), id, body)
	case binary.LittleEndian.Uint32(b[12:]) != 0:
		return message{}, fmt.Errorf("%w: reserved field is set", errMessage)
	}
	m.id = string(b[messageFixed:][:id])
	m.body = append([]byte(nil), b[messageFixed+id:]...)
	return m, nil
}
