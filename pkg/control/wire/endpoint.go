package wire

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// ErrAddress: an address that nobody could ask a node at.
var ErrAddress = errors.New("no address that a node can be asked at")

// maxAddresses of a machine are published; a pool takes no more.
const maxAddresses = 8

// Endpoints are where others reach what listens at l. advertise is an address, or
// several with commas between them, each with a port or, without, with that of l.
// "": the address of l itself, or those of this machine if it listens on all.
func Endpoints(l net.Addr, advertise string) ([]string, error) {
	own, err := netip.ParseAddrPort(l.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrAddress, l, err)
	}
	if advertise != "" {
		return advertised(advertise, own.Port())
	}
	if a := own.Addr(); !a.IsUnspecified() {
		return []string{netip.AddrPortFrom(a.Unmap().WithZone(""), own.Port()).String()}, nil
	}
	all, err := machine()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range all {
		out = append(out, netip.AddrPortFrom(a, own.Port()).String())
	}
	return out, nil
}

func advertised(text string, port uint16) (out []string, err error) {
	for part := range strings.SplitSeq(text, ",") {
		at, err := netip.ParseAddrPort(part)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(part); err != nil {
				return nil, fmt.Errorf("%w: %.128q: give an IP address, or one with a port such as 192.0.2.7:9811 or [2001:db8::7]:9811", ErrAddress, part)
			}
			at = netip.AddrPortFrom(a, port)
		}
		if a := at.Addr(); at.Port() == 0 || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return nil, fmt.Errorf("%w: %.128q: give one that other machines reach", ErrAddress, part)
		}
		out = append(out, at.String())
	}
	if len(out) > maxAddresses {
		return nil, fmt.Errorf("%w: %d of them, give at most %d", ErrAddress, len(out), maxAddresses)
	}
	return out, nil
}

// machine is this machine's addresses, those of IPv4 first; the loopback one
// only where there is no other, for tests on a machine without a network.
func machine() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this machine's addresses: %w", err)
	}
	var out []netip.Addr
	for _, f := range found {
		p, err := netip.ParsePrefix(f.String())
		if a := p.Addr().Unmap(); err == nil && a.IsGlobalUnicast() {
			out = append(out, a)
		}
	}
	slices.SortStableFunc(out, func(a, b netip.Addr) int { return cmp.Compare(a.BitLen(), b.BitLen()) })
	if len(out) == 0 {
		out = append(out, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	return out[:min(len(out), maxAddresses)], nil
}
