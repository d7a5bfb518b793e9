package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/encoding"
)

// version is that of every message. A request of a higher one asks for something
// that this program does not know; an answer is of its request's version.
const version = 1

// maxMessage bounds a message in either direction.
const maxMessage = 64 << 10

var (
	errNewer     = errors.New("message is of a newer version")
	errMalformed = errors.New("message is malformed")
)

// frame is a message as gRPC carries it. It is decoded beyond gRPC, which would
// answer Internal to whatever is wrong with it.
type frame struct{ data []byte }

// codec hands frames through.
type codec struct{}

var _ encoding.Codec = codec{}

func (codec) Name() string { return "json" }

func (codec) Marshal(v any) ([]byte, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("%w: a %T", errMalformed, v)
	}
	return f.data, nil
}

func (codec) Unmarshal(data []byte, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("%w: a %T", errMalformed, v)
	}
	f.data = bytes.Clone(data) // gRPC uses its buffer again
	return nil
}

// message is what goes over the wire. fault says what is wrong with it, "" for nothing.
type message interface {
	fault() string
	head() *header
}

// header begins every message.
type header struct {
	Version int `json:"version"`
}

func (h *header) head() *header { return h }

func encode(m message) (*frame, error) {
	m.head().Version = version
	if reason := m.fault(); reason != "" {
		return nil, fmt.Errorf("%w: %s", errMalformed, reason)
	}
	b, err := json.Marshal(m)
	return &frame{b}, err
}

// decode fills m, all or nothing of it to be used. errNewer, errMalformed.
func decode(f *frame, m message) error {
	var h header
	if err := json.Unmarshal(f.data, &h); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	if h.Version > version {
		return fmt.Errorf("%w: %d, this program knows up to %d", errNewer, h.Version, version)
	}
	dec := json.NewDecoder(bytes.NewReader(f.data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows it", errMalformed)
	}
	if m.head().Version < 1 {
		return fmt.Errorf("%w: version %d", errMalformed, m.head().Version)
	}
	if reason := m.fault(); reason != "" {
		return fmt.Errorf("%w: %s", errMalformed, reason)
	}
	return nil
}
