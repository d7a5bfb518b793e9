package ondisk

import "unicode/utf16"

// utf16Units returns the UTF-16LE code units of b, whose odd last byte, if
// any, is ignored.
func utf16Units(b []byte) []uint16 {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = le.Uint16(b[2*i:])
	}
	return units
}

// validUTF16 reports whether every surrogate has its other half.
func validUTF16(units []uint16) bool {
	for i := 0; i < len(units); i++ {
		switch r := rune(units[i]); {
		case !utf16.IsSurrogate(r):
		case i+1 < len(units) && utf16.DecodeRune(r, rune(units[i+1])) != '\uFFFD':
			i++
		default:
			return false
		}
	}
	return true
}

func putUTF16(dst []byte, units []uint16) {
	for i, u := range units {
		le.PutUint16(dst[2*i:], u)
	}
}
