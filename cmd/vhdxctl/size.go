package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// units are binary, as everywhere around disk images.
const units = "KMGTPE"

// parseSize reads a number of bytes: 4096, 512M, 10G, 10GiB, 10Gi.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("size %q: want a whole number of bytes, or one with a unit, such as 512M or 10G", s)
	}
	shift, err := unitShift(s[len(digits):])
	if err != nil {
		return 0, fmt.Errorf("size %q: %w", s, err)
	}
	if n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("size %q: more than 8 EiB", s)
	}
	return int64(n) << shift, nil
}

func unitShift(unit string) (int, error) {
	letter := unit
	for _, suffix := range []string{"iB", "i"} {
		if l, ok := strings.CutSuffix(unit, suffix); ok {
			letter = l
			break
		}
	}
	letter = strings.ToUpper(letter)
	switch i := strings.Index(units, letter); {
	case unit == "":
		return 0, nil
	case unit == "B", unit == "b":
		return 0, nil
	case len(letter) == 1 && i >= 0:
		return 10 * (i + 1), nil
	case len(letter) == 2 && letter[1] == 'B' && strings.Contains(units, letter[:1]):
		return 0, fmt.Errorf("unit %s is decimal to some and binary to others: write %siB (1024) or plain bytes", unit, letter[:1])
	}
	return 0, fmt.Errorf("unknown unit %q: want one of K, M, G, T (KiB, MiB, GiB, TiB)", unit)
}

// formatSize is the size in the largest unit that gives a whole number, or one
// decimal.
func formatSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	i := 0
	for i < len(units)-1 && n>>(10*(i+2)) > 0 {
		i++
	}
	unit := int64(1) << (10 * (i + 1))
	if n%unit == 0 {
		return fmt.Sprintf("%d %ciB", n/unit, units[i])
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(unit), units[i])
}

// exactSize is formatSize with the number of bytes.
func exactSize(n int64) string {
	if n < 1024 {
		return formatSize(n)
	}
	return fmt.Sprintf("%s (%d bytes)", formatSize(n), n)
}

// sizeFlag is a size on the command line.
type sizeFlag int64

func (f *sizeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*f), 10)
}

// Set implements pflag.Value.
func (f *sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	*f = sizeFlag(n)
	return err
}

// Type implements pflag.Value.
func (f *sizeFlag) Type() string { return "size" }
