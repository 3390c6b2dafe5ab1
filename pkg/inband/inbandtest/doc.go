// Package inbandtest simulates foreign targets: many shelf.slot behind one link, with the habits of vblade.
package inbandtest
