package ondisk

import "testing"

func TestChecksumVector(t *testing.T) {
	// The check value of CRC-32C; the field of four zeros is put in and taken
	// out of the count by the second case alone.
	if got := Checksum([]byte("\x00\x00\x00\x00"), 0); got != 0x48674BC7 {
		t.Fatalf("CRC-32C of four zero bytes = %#x, want 0x48674bc7", got)
	}
	b := []byte("123456789")
	const want = 0xE3069283
	if got := Checksum(append(b, 0, 0, 0, 0), 9); got != Checksum(append(b, 1, 2, 3, 4), 9) || got == want {
		t.Fatalf("the field's own bytes count: %#x", got)
	}
	// A field inside: the same as the bytes with zeros there (I-OD-2).
	dirty, zeroed := []byte("1234\xAA\xBB\xCC\xDD56789"), []byte("1234\x00\x00\x00\x0056789")
	if got, want := Checksum(dirty, 4), Checksum(zeroed, 4); got != want {
		t.Fatalf("checksum with a dirty field %#x, with a zeroed one %#x", got, want)
	}
}

func TestChecksumPolynomial(t *testing.T) {
	// Bit by bit, with the reflected Castagnoli polynomial.
	slow := func(b []byte) uint32 {
		crc := ^uint32(0)
		for _, c := range b {
			crc ^= uint32(c)
			for range 8 {
				crc = crc>>1 ^ 0x82F63B78*(crc&1)
			}
		}
		return ^crc
	}
	if got := slow([]byte("123456789")); got != 0xE3069283 {
		t.Fatalf("the reference itself is off: %#x", got)
	}
	b := []byte("headxxxxsequence and what follows it")
	zeroed := append([]byte(nil), b...)
	clear(zeroed[4:8])
	if got, want := Checksum(b, 4), slow(zeroed); got != want {
		t.Fatalf("checksum %#x, want %#x", got, want)
	}
}

func TestChecksumAllocatesNothing(t *testing.T) {
	b := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { Checksum(b, 4) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
