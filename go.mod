module github.com/aoe-csi/aoe-csi

go 1.26.0
