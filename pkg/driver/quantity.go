package driver

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// units are the suffixes of a quantity as Kubernetes writes them.
var units = map[string]int64{
	"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}

// ParseQuantity reads a number of bytes: 33554432, 32Mi, 1G. Fractions are
// refused, for no size of ours has one.
func ParseQuantity(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKMGTi")
	n, err := strconv.ParseInt(digits, 10, 64)
	unit, known := units[s[len(digits):]]
	if err != nil || !known || n < 0 || digits[0] == '+' {
		return 0, fmt.Errorf("%w: %q is no quantity; write bytes or a whole number with Ki, Mi, Gi, Ti, k, M, G or T, such as 32Mi", errInvalid, s)
	}
	if n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%w: quantity %q is too large", errInvalid, s)
	}
	return n * unit, nil
}

// formatQuantity writes a number of bytes in the largest binary unit it is a
// multiple of.
func formatQuantity(n int64) string {
	for _, u := range []string{"Ti", "Gi", "Mi", "Ki"} {
		if n != 0 && n%units[u] == 0 {
			return strconv.FormatInt(n/units[u], 10) + u
		}
	}
	return strconv.FormatInt(n, 10)
}
