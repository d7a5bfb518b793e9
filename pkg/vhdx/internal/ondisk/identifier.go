package ondisk

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxCreatorUnits is how many UTF-16 code units of a creator fit, its final
// NUL left out.
const MaxCreatorUnits = creatorSize/2 - 1

// FileIdentifier is the file type identifier (MS-VHDX 2.2.1), the first bytes
// of the file. No checksum covers it and nobody rewrites it after creation.
//
//	0    8  signature "vhdxfile"
//	8  512  Creator, UTF-16LE, ended by a NUL where shorter; diagnostic only
type FileIdentifier struct {
	Creator string
}

// DecodeFileIdentifier reads the identifier from the start of b. The creator
// decides nothing, so no content of it is refused: what is no UTF-16 reads as
// U+FFFD.
func DecodeFileIdentifier(b []byte) (FileIdentifier, error) {
	const name = "file type identifier"
	if len(b) < IdentifierSize {
		return FileIdentifier{}, errShort(name, len(b), IdentifierSize)
	}
	if err := checkSignature(name, b, signatureIdentifier); err != nil {
		return FileIdentifier{}, err
	}
	units := utf16Units(b[8:IdentifierSize])
	if end := slices.Index(units, 0); end >= 0 {
		units = units[:end]
	}
	return FileIdentifier{Creator: string(utf16.Decode(units))}, nil
}

// Encode writes the identifier to the start of dst.
func (id FileIdentifier) Encode(dst []byte) error {
	if len(dst) < IdentifierSize {
		return errShort("file type identifier", len(dst), IdentifierSize)
	}
	if !utf8.ValidString(id.Creator) || strings.ContainsRune(id.Creator, 0) {
		return fmt.Errorf("creator %q: not UTF-8 text without NUL", id.Creator)
	}
	units := utf16.Encode([]rune(id.Creator))
	if len(units) > MaxCreatorUnits {
		return fmt.Errorf("creator of %d UTF-16 units: at most %d fit", len(units), MaxCreatorUnits)
	}
	clear(dst[:IdentifierSize])
	signature(dst, signatureIdentifier)
	putUTF16(dst[8:], units)
	return nil
}
