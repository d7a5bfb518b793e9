package main

import "testing"

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "512": 512, "512b": 512, "4096B": 4096, "1k": 1 << 10, "1K": 1 << 10, "3KiB": 3 << 10, "3Ki": 3 << 10,
		"512M": 512 << 20, "10G": 10 << 30, "10Gi": 10 << 30, "10GiB": 10 << 30, "2t": 2 << 40, "1P": 1 << 50, "7E": 7 << 60,
	} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "G", "-1", "+1", "1.5G", "10GB", "10 G", "0x10", "1X", "1GG", "1iB", "1i", "8E", "9223372036854775808", "１０"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q accepted as %d", s, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 bytes", 1023: "1023 bytes", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB", 10 << 30: "10 GiB",
		21 << 29: "10.5 GiB", 64 << 40: "64 TiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
