// Package pool keeps volumes as files in a shared directory.
package pool
