package ondisk

import (
	"errors"
	"fmt"
)

var (
	// ErrSignature: the bytes are not this structure at all.
	ErrSignature = errors.New("wrong signature")
	// ErrChecksum: the bytes are not what was written.
	ErrChecksum = errors.New("wrong checksum")
)

// Error says which structure breaks which rule, and where within it.
type Error struct {
	Structure string // the specification's name
	Offset    int    // of the offending field, from the structure's first byte
	Reason    string
	Err       error // ErrSignature, ErrChecksum or nil
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s, byte %#x: %s", e.Structure, e.Offset, e.Reason)
}

func (e *Error) Unwrap() error { return e.Err }

func errf(structure string, offset int, format string, args ...any) error {
	return &Error{Structure: structure, Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

func errShort(structure string, have, want int) error {
	return errf(structure, 0, "%d bytes given, %d needed", have, want)
}

func checkSignature(structure string, b []byte, want string) error {
	if got := b[:len(want)]; string(got) != want {
		return &Error{structure, 0, fmt.Sprintf("signature % x, want % x (%q)", got, want, want), ErrSignature}
	}
	return nil
}

func checkChecksum(structure string, b []byte, fieldOffset int) error {
	stored, computed := le.Uint32(b[fieldOffset:]), Checksum(b, fieldOffset)
	if stored != computed {
		return &Error{structure, fieldOffset, fmt.Sprintf("checksum %#08x, the bytes give %#08x", stored, computed), ErrChecksum}
	}
	return nil
}
