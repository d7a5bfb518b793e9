package vhdx_test

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
)
