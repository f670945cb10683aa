"""embedcache."""
